"""Antialiased Lanczos resizing of float images: what BEiT does with Pillow, which torch does not offer.

The window is that of Pillow's `Image.resize(..., LANCZOS)`: sinc(x) sinc(x/3) on [-3, 3], stretched by
the scale where the image shrinks, weights cut at the border and made to sum to 1. Deliberate
difference: no rounding to 8 bits between and after the two passes.

Legend: B batch, C channels, H W before and h w after.
"""

from functools import lru_cache

import torch
from torch import Tensor

_TAPS = 3.0


@lru_cache(maxsize=16)
def _matrix(size_in: int, size_out: int) -> Tensor:
    """(size_out, size_in) float32, rows sum to 1."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    centre = (torch.arange(size_out, dtype=torch.float64) + 0.5) * scale
    position = torch.arange(size_in, dtype=torch.float64) + 0.5
    x = (position[None] - centre[:, None]) / stretch
    weight = torch.sinc(x) * torch.sinc(x / _TAPS) * (x.abs() < _TAPS)
    return (weight / weight.sum(dim=1, keepdim=True)).float()


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) in [0, 1] -> (B, C, h, w), clamped to [0, 1]; unchanged where the size is."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    rows = _matrix(height, size[0]).to(images.device)
    columns = _matrix(width, size[1]).to(images.device)
    return (rows @ (images.float() @ columns.T)).clamp(0, 1)
