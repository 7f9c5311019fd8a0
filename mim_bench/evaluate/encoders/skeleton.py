"""An encoder of timm's of the shapes that tensors have: what it is made of is read from them.

Class token or none, registers, DeiT's distillation token (the same function as a register), positions with or
without prefix tokens, relative positions, layer scale, SwiGLU, norms.

Legend: D width, p patch side.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.layers.mlp import SwiGLUPacked
from timm.models.beit import Beit
from torch import Tensor, nn

from mim_bench.errors import UserError
from mim_bench.evaluate.encoders.convert import is_beit
from mim_bench.evaluate.encoders.positions import Grid, fit_absolute, fit_relative, grid_of
from mim_bench.model.vit import Encoder

_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # ViT-T, S, B, L, H
_PREFIX_TOKENS = ("cls_token", "reg_token")


def build_skeleton(
    tensors: dict[str, Tensor],
    notes: list[str],
    *,
    image_size: Grid | None,
    num_heads: int | None,
    epsilon: float,
    has_fc_norm: bool,
) -> Encoder | Beit:
    """An encoder without head, at timm's initial weights; position tables of `tensors` are fitted to `image_size`.

    Args:
        tensors: by timm's names; tables of another grid are replaced.
        notes: conversions are added to it.
        image_size: height and width in pixels; by default that of the tables.
        epsilon: LayerNorm's.
        has_fc_norm: whether the file has a norm behind the pooling.
    """
    shape = _shape(tensors, num_heads)
    has_norm = "norm.weight" in tensors
    if not has_norm and has_fc_norm:
        notes.append(
            "the file is a fine-tuned classifier whose norm comes after pooling (fc_norm): tokens are not normalised"
        )
    patch_size = shape["patch_size"]
    grid = image_size and grid_of(image_size, patch_size)
    shape |= {"norm_layer": partial(nn.LayerNorm, eps=epsilon), "num_classes": 0, "global_pool": ""}
    if is_beit(tensors):
        return _beit(tensors, shape, grid, notes, has_norm=has_norm or not has_fc_norm)
    prefix = sum(tensors[name].shape[1] for name in _PREFIX_TOKENS if name in tensors)
    grid, has_all_positions = fit_absolute(tensors, prefix, grid, notes)
    block = _first_block(tensors)
    gated = (
        tensors["blocks.0.mlp.fc2.weight"].shape[1] != tensors["blocks.0.mlp.fc1.weight"].shape[0]
    )
    options: dict[str, Any] = {
        "class_token": "cls_token" in tensors,
        "reg_tokens": tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
        "no_embed_class": not has_all_positions,
        "init_values": 1e-5 if "ls1.gamma" in block else None,
        "qk_norm": "attn.q_norm.weight" in block,
        "qkv_bias": "attn.qkv.bias" in block,
        "pre_norm": "norm_pre.weight" in tensors,
        "final_norm": has_norm or not has_fc_norm,
    } | ({"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if gated else {})
    return Encoder(img_size=(grid[0] * patch_size, grid[1] * patch_size), **shape, **options)


def _beit(
    tensors: dict[str, Tensor],
    shape: dict[str, Any],
    grid: Grid | None,
    notes: list[str],
    *,
    has_norm: bool,
) -> Beit:
    block, patch_size = _first_block(tensors), shape["patch_size"]
    grid = fit_relative(tensors, grid, notes)
    if "pos_embed" in tensors:
        grid, _ = fit_absolute(tensors, 1, grid, notes)
    # the pooling decides where the final norm is
    pooled: dict[str, Any] = shape | {"global_pool": "token" if has_norm else "avg"}
    encoder = Beit(
        img_size=(grid[0] * patch_size, grid[1] * patch_size),
        qkv_bias="attn.q_bias" in block,
        init_values=1e-5 if "gamma_1" in block else None,
        use_abs_pos_emb="pos_embed" in tensors,
        use_rel_pos_bias="attn.relative_position_bias_table" in block,
        use_shared_rel_pos_bias="rel_pos_bias.relative_position_bias_table" in tensors,
        **pooled,
    )
    encoder.global_pool = shape["global_pool"]
    encoder.fc_norm = nn.Identity()  # behind the pooling, which is not the encoder's
    return encoder


def _first_block(tensors: Mapping[str, Tensor]) -> set[str]:
    return {name.removeprefix("blocks.0.") for name in tensors if name.startswith("blocks.0.")}


def _shape(tensors: Mapping[str, Tensor], num_heads: int | None) -> dict[str, Any]:
    """Widths, depth and heads."""
    projection, hidden = tensors["patch_embed.proj.weight"], tensors.get("blocks.0.mlp.fc1.weight")
    if projection.ndim != 4 or projection.shape[2] != projection.shape[3]:
        raise UserError(
            f"patch_embed.proj.weight has shape {tuple(projection.shape)}; needed is (D, channels, p, p), as of "
            "still images and square patches"
        )
    if hidden is None or "blocks.0.mlp.fc2.weight" not in tensors:
        raise UserError("no blocks.0.mlp.fc1.weight and fc2.weight: not a ViT of timm's")
    embed_dim, in_chans, patch_size, _ = projection.shape
    tables = [t for name, t in tensors.items() if name.endswith("relative_position_bias_table")]
    heads = tables[0].shape[-1] if tables else num_heads or _HEADS.get(embed_dim)
    if heads is None or embed_dim % heads:
        raise UserError(f"num_heads={heads}: give one that divides the width {embed_dim}")
    return {
        "patch_size": patch_size,
        "in_chans": in_chans,
        "embed_dim": embed_dim,
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "num_heads": heads,
        "mlp_ratio": (hidden.shape[0] + 0.25) / embed_dim,  # timm rounds down
    }
