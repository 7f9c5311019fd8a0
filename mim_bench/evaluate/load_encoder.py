"""Loading a pre-trained encoder into a plain timm `VisionTransformer`, never silently.

Accepts a run folder, a safetensors file, or a checkpoint of MAE's, timm's or a toolbox's (see `weights_file`).
What the encoder is made of is read from its tensors: class token or none, registers, DeiT's distillation
token (the same function as a register), positions with or without prefix tokens, layer scale, norms.

Legend: D width, P positions of the table, R registers.
"""

import logging
from pathlib import Path
from typing import Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from mim_bench.errors import UserError
from mim_bench.evaluate.weights_file import read_weights
from mim_bench.model.vit import Encoder, LayerNorm
from mim_bench.records.run_folder import check, read_config
from mim_bench.train import checkpoint

_logger = logging.getLogger(__name__)
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # ViT-T, S, B, L, H
_NOT_ENCODER = ("decoder_", "mask_token", "head.", "head_dist.", "fc_norm.")
_PREFIX_TOKENS = ("cls_token", "reg_token")


def load_encoder(
    path_or_run: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> Encoder:
    """A timm ViT (no head, tokens out) with pre-trained weights; every encoder tensor must match.

    Args:
        path_or_run: run folder, or a file of weights.
        image_size: pixels, side or (height, width); where a file is of another size its position table is
            interpolated, and a warning says so. Needed for a file whose grid is not square.
        num_heads: only needed for a file of a width other than ViT-T, S, B, L, H.

    Raises:
        UserError: unreadable, or not all of the encoder's tensors match; counts are given.
    """
    path = Path(path_or_run)
    if path.is_dir():
        config = read_config(path)
        if (path / "manifest.json").is_file():
            check(path, "encoder.safetensors")
        path = path / "encoder.safetensors"
        image_size = config.data.image_size
        num_heads = config.model.num_heads
    every = read_weights(path)
    tensors = {name: t for name, t in every.items() if not name.startswith(_NOT_ENCODER)}
    if "dist_token" in tensors:
        tensors["reg_token"] = tensors.pop("dist_token")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        encoder = _skeleton(tensors, size, num_heads, has_fc_norm="fc_norm.weight" in every)
        checkpoint.load_exactly(encoder, tensors, "encoder")
    except UserError as error:
        shown = ", ".join(list(every)[:5])
        raise UserError(f"{path}: {error}; its first names: {shown}") from None
    _logger.info(
        "%s: %d tensors matched, 0 missing, 0 unexpected; %d of decoder and head left out",
        path, len(tensors), len(every) - len(tensors),
    )  # fmt: skip
    return encoder


def _skeleton(
    tensors: dict[str, Tensor],
    image_size: tuple[int, int] | None,
    num_heads: int | None,
    *,
    has_fc_norm: bool,
) -> Encoder:
    """An encoder of the shapes that the tensors have; the position table is fitted to `image_size`."""
    projection, hidden = tensors["patch_embed.proj.weight"], tensors.get("blocks.0.mlp.fc1.weight")
    if projection.ndim != 4 or projection.shape[2] != projection.shape[3]:
        raise UserError(
            f"patch_embed.proj.weight has shape {tuple(projection.shape)}; needed is (D, channels, p, p), as of "
            "still images and square patches"
        )
    if hidden is None:
        raise UserError("no blocks.0.mlp.fc1.weight: not a ViT of timm's")
    embed_dim, in_chans, patch_size, _ = projection.shape
    heads = num_heads or _HEADS.get(embed_dim)
    if heads is None or embed_dim % heads:
        raise UserError(f"num_heads={heads}: give one that divides the width {embed_dim}")
    block = {name.removeprefix("blocks.0.") for name in tensors if name.startswith("blocks.0.")}
    has_norm = "norm.weight" in tensors
    if not has_norm and has_fc_norm:
        _logger.warning(
            "the file is a fine-tuned classifier whose norm comes after pooling (fc_norm): tokens are not normalised"
        )
    prefix = sum(tensors[name].shape[1] for name in _PREFIX_TOKENS if name in tensors)
    size, has_all_positions = _fit_positions(tensors, prefix, patch_size, image_size)
    options: dict[str, Any] = {
        "class_token": "cls_token" in tensors,
        "reg_tokens": tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
        "no_embed_class": not has_all_positions,
        "init_values": 1e-5 if "ls1.gamma" in block else None,
        "qk_norm": "attn.q_norm.weight" in block,
        "qkv_bias": "attn.qkv.bias" in block,
        "pre_norm": "norm_pre.weight" in tensors,
        "final_norm": has_norm or not has_fc_norm,
    }
    return Encoder(
        img_size=size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=0,
        global_pool="",
        embed_dim=embed_dim,
        depth=len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        num_heads=heads,
        mlp_ratio=hidden.shape[0] / embed_dim,
        norm_layer=LayerNorm,
        **options,
    )


def _fit_positions(
    tensors: dict[str, Tensor], prefix: int, patch_size: int, image_size: tuple[int, int] | None
) -> tuple[tuple[int, int], bool]:
    """Image size of the encoder, and whether its table has positions of the prefix tokens too.

    Replaces the table where it is of another grid than `image_size` has.
    """
    table = tensors.get("pos_embed")
    if table is None or table.ndim != 3:
        found = "absent" if table is None else f"of shape {tuple(table.shape)}"
        raise UserError(f"pos_embed is {found}; needed is a table (1, P, D) of absolute positions")
    if image_size and (image_size[0] % patch_size or image_size[1] % patch_size):
        raise UserError(f"image_size={image_size} is no multiple of the patch size {patch_size}")
    grid = image_size and (image_size[0] // patch_size, image_size[1] // patch_size)
    length = table.shape[1]
    for inside in dict.fromkeys((prefix, 0)):
        if grid and length - inside == grid[0] * grid[1]:
            assert image_size is not None
            return image_size, inside == prefix
    for inside in dict.fromkeys((prefix, 0)):
        side = round((length - inside) ** 0.5)
        if side * side == length - inside:
            break
    else:
        raise UserError(f"{length} positions are no square grid; give image_size")
    if grid is None or image_size is None:
        return (side * patch_size, side * patch_size), inside == prefix
    _logger.warning(
        "position table interpolated from %d x %d to %d x %d patches", side, side, *grid
    )
    resample: Any = resample_abs_pos_embed  # scripted by torch, which hides its signature
    tensors["pos_embed"] = resample(
        table, new_size=list(grid), old_size=[side, side], num_prefix_tokens=inside
    )
    return image_size, inside == prefix
