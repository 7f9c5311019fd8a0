"""timm's `VisionTransformer` as this project builds it, with the types that timm leaves open.

Every encoder here has a class token, a position table and MAE's LayerNorm epsilon. Nothing is added to
timm's class: parameters, names and functions are timm's.
"""

from typing import TYPE_CHECKING, Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn


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
