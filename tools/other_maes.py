"""Other people's masked autoencoders, for timing next to ours: `speed_table.py` says where they are fetched.

Each is a module of normalised images (B, 3, H, W) -> loss: mean squared error at hidden patches, normalised by patch.
"""

import importlib
import sys
import types
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from mim_bench.model.vit import LayerNorm, sincos_table

MASK_RATIO = 0.75


@dataclass(frozen=True)
class Shape:
    """Sizes of a masked autoencoder; heads of 32 or 64 values as the presets have them."""

    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    decoder_dim: int
    decoder_depth: int
    decoder_num_heads: int
    batch_size: int


class TimmMae(nn.Module):
    """MAE written plainly on timm's `VisionTransformer` and `Block`."""

    def __init__(self, shape: Shape) -> None:
        from timm.models.vision_transformer import Block, VisionTransformer

        super().__init__()
        self.encoder = VisionTransformer(
            shape.image_size, shape.patch_size, num_classes=0, embed_dim=shape.embed_dim,
            depth=shape.depth, num_heads=shape.num_heads, norm_layer=LayerNorm,
        )  # fmt: skip
        grid = (shape.image_size // shape.patch_size,) * 2
        self.patch, self.num_visible = shape.patch_size, int(grid[0] ** 2 * (1 - MASK_RATIO))
        dim = shape.decoder_dim
        self.embed, self.mask_token = (
            nn.Linear(shape.embed_dim, dim),
            nn.Parameter(torch.zeros(1, 1, dim)),
        )
        self.position = nn.Parameter(sincos_table(grid, dim)[None].float(), requires_grad=False)
        heads = shape.decoder_num_heads
        blocks = [
            Block(dim, heads, qkv_bias=True, norm_layer=LayerNorm)
            for _ in range(shape.decoder_depth)
        ]
        self.decoder = nn.Sequential(
            *blocks, LayerNorm(dim), nn.Linear(dim, shape.patch_size**2 * 3)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> mean squared error at hidden patches, normalised by patch."""
        vit = self.encoder
        x = vit.patch_embed(images) + vit.pos_embed[:, 1:]
        batch, num_patches, _ = x.shape
        order = torch.rand(batch, num_patches, device=x.device).argsort(1)
        x = x.gather(1, order[:, : self.num_visible, None].expand(-1, -1, x.shape[2]))
        cls = (vit.cls_token + vit.pos_embed[:, :1]).expand(batch, -1, -1)
        x = self.embed(vit.norm(vit.blocks(torch.cat([cls, x], 1))))
        hidden = self.mask_token.expand(batch, num_patches - self.num_visible, -1)
        tokens = torch.cat([x[:, 1:], hidden.to(x.dtype)], 1)
        back = order.argsort(1)[:, :, None].expand(-1, -1, tokens.shape[2])
        prediction = self.decoder(torch.cat([x[:, :1], tokens.gather(1, back)], 1) + self.position)[
            :, 1:
        ]
        side = images.shape[2] // self.patch
        patches = images.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)
        patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(batch, side * side, -1)
        std = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        errors = (prediction - (patches - patches.mean(-1, keepdim=True)) / std).square().mean(-1)
        is_hidden = torch.ones_like(errors).scatter(1, order[:, : self.num_visible], 0)
        return (errors * is_hidden).sum() / is_hidden.sum()


def official_class(checkout: str, old_timm: str) -> Callable[..., nn.Module]:
    """facebookresearch/mae's model class on its timm, which is then taken out of the way of ours."""
    shim = types.ModuleType("torch._six")
    vars(shim).update(container_abcs=abc, int_classes=int, string_classes=str, inf=float("inf"))
    sys.modules["torch._six"] = shim
    vars(np)["float"] = float
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "timm"}
    for name in ours:
        del sys.modules[name]
    sys.path[:0] = [checkout, old_timm]
    found = importlib.import_module("models_mae").MaskedAutoencoderViT
    del sys.path[:2]
    for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "util")]:
        del sys.modules[name]
    sys.modules.update(ours)
    return found


def official_mae(official: Callable[..., nn.Module], shape: Shape) -> Callable[[Tensor], Tensor]:
    """facebookresearch/mae's model of this shape: images -> loss."""
    model = official(
        img_size=shape.image_size, patch_size=shape.patch_size, embed_dim=shape.embed_dim, depth=shape.depth,
        num_heads=shape.num_heads, decoder_embed_dim=shape.decoder_dim, decoder_depth=shape.decoder_depth,
        decoder_num_heads=shape.decoder_num_heads, mlp_ratio=4, norm_layer=partial(nn.LayerNorm, eps=1e-6),
        norm_pix_loss=True,
    )  # fmt: skip
    return _Loss(model, lambda model, images: model(images, mask_ratio=MASK_RATIO)[0])


def lightly_mae(checkout: str, shape: Shape) -> Callable[[Tensor], Tensor]:
    """Lightly's modules put together as its documentation does, on the same timm as ours: images -> loss."""
    sys.path.insert(0, checkout)
    modules = importlib.import_module("lightly.models.modules")
    utils = importlib.import_module("lightly.models.utils")
    sys.path.remove(checkout)
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(
        shape.image_size, shape.patch_size, num_classes=0, embed_dim=shape.embed_dim,
        depth=shape.depth, num_heads=shape.num_heads, norm_layer=LayerNorm,
    )  # fmt: skip
    parts = nn.ModuleDict(
        {
            "encoder": modules.MaskedVisionTransformerTIMM(vit=vit),
            "embed": nn.Linear(shape.embed_dim, shape.decoder_dim),
            "decoder": modules.MaskedVisionTransformerDecoderTIMM(
                num_patches=vit.patch_embed.num_patches, embed_dim=shape.decoder_dim, depth=shape.decoder_depth,
                num_heads=shape.decoder_num_heads, num_prefix_tokens=1, mlp_ratio=4.0,
            ),
            "head": nn.Linear(shape.decoder_dim, shape.patch_size**2 * 3),
        }
    )  # fmt: skip
    length = vit.patch_embed.num_patches + 1

    def loss(parts: nn.ModuleDict, images: Tensor) -> Tensor:
        keep, hidden = utils.random_token_mask(
            size=(len(images), length), mask_ratio=MASK_RATIO, device=images.device
        )
        encoded = parts["embed"](parts["encoder"].encode(images=images, idx_keep=keep))
        tokens = encoded.new_zeros(len(images), length, encoded.shape[-1])
        decoded = parts["decoder"](utils.set_at_index(tokens, keep, encoded), idx_mask=hidden)
        prediction = parts["head"](utils.get_at_index(decoded, hidden))
        patches = utils.get_at_index(utils.patchify(images, shape.patch_size), hidden - 1)
        std = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        return nn.functional.mse_loss(prediction, (patches - patches.mean(-1, keepdim=True)) / std)

    return _Loss(parts, loss)


class _Loss(nn.Module):
    """A model and its loss of a batch."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, images: Tensor) -> Tensor:
        return self.loss(self.model, images)
