"""timm's `VisionTransformer` as this project builds it, with the types that timm leaves open.

Every encoder here has a class token, a position table and MAE's LayerNorm epsilon. Nothing is added to
timm's class: parameters, names and functions are timm's.
"""

from typing import TYPE_CHECKING, Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """LayerNorm with epsilon 1e-6, as in all published MAE models."""

    def __init__(self, normalized_shape: int, **options: Any) -> None:
        super().__init__(normalized_shape, eps=1e-6, **options)  # newer timm names device and dtype


class Encoder(VisionTransformer):
    """timm's ViT; class token and position table are there."""

    if TYPE_CHECKING:
        cls_token: nn.Parameter  # pyright: ignore[reportIncompatibleVariableOverride]
        pos_embed: nn.Parameter  # pyright: ignore[reportIncompatibleVariableOverride]
        blocks: nn.Sequential  # pyright: ignore[reportIncompatibleVariableOverride]
        head: nn.Linear  # pyright: ignore[reportIncompatibleVariableOverride]
        norm: nn.Module


def sincos_table(grid: tuple[int, int], dim: int) -> Tensor:
    """(G_h, G_w) grid -> (1 + L, D) float64; row 0, the class token's, is zero. D: a multiple of 4.

    Fixed sines and cosines (MAE; Vaswani et al. 2017). Convention (tests/golden, mae_pos_embed.npz): a row is
    [sin(col w), cos(col w), sin(row w), cos(row w)] with w = 10000^(-k / (D/4)), k = 0 .. D/4 - 1, in blocks.
    """
    if dim % 4:
        raise ValueError(f"dim={dim} is no multiple of 4")
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows = torch.arange(grid[0], dtype=torch.float64)[:, None].expand(grid).reshape(-1, 1)
    columns = torch.arange(grid[1], dtype=torch.float64)[None, :].expand(grid).reshape(-1, 1)
    angles = [columns * frequency, rows * frequency]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), table])
