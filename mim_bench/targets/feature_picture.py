"""Patch features as colours, for every target whose values are features.

Legend: B batch, L patches, D width of a feature, H W image.
"""

import torch
from torch import Tensor

from mim_bench.target import Geometry

_MARGIN = 0.02
"""Share of patches that may lie outside of the range of colours at either end."""


def feature_picture(values: Tensor, reference: Tensor, geometry: Geometry) -> Tensor:
    """Values (B, L, D) -> (B, 3, H, W) in [0, 1]: three principal components as red, green and blue.

    Components and range are those of `reference` (B, L, D), so that a prediction drawn with the target's has the
    target's colours where it is right.
    """
    rows = reference.flatten(0, 1).double()
    mean = rows.mean(0)
    axes = torch.linalg.eigh((rows - mean).T @ (rows - mean))[1].flip(1)[:, :3]  # (D, 3)
    strongest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * strongest.sign()  # the sign of an eigenvector is arbitrary
    projected = (rows - mean) @ axes
    ends = torch.tensor([_MARGIN, 1 - _MARGIN], dtype=rows.dtype, device=rows.device)
    low, high = torch.quantile(projected, ends, dim=0)
    colours = ((values.double() - mean) @ axes - low) / (high - low).clamp_min(1e-12)
    tiles = colours.clamp(0, 1).float().transpose(1, 2).unflatten(2, geometry.grid)
    if tiles.shape[1] < 3:  # features of fewer than three values
        tiles = tiles.expand(-1, 3, -1, -1) if tiles.shape[1] == 1 else tiles[:, [0, 1, 1]]
    patch = geometry.patch_size
    return tiles.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
