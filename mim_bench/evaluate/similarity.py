"""Similarity of two encoders, and how well an encoder predicts a target that it was not trained on.

- Linear CKA (Kornblith et al. 2019, arXiv 1905.00414, equation 4) of two encoders' features of the same images:
  1 for features that are equal up to rotation and scale. Two seeds of one target are the measure of what is close.
- R^2 of a linear map from the tokens of an encoder, which sees the whole image, to a target's values at the same
  patches, solved on training images and measured on others; class indices as one-hot vectors.

Legend: N images or patches, D and E widths of features, V width of a target.
"""

import torch
from torch import Tensor

_PENALTY = 1e-6
"""Over the mean eigenvalue of the tokens' second moments: so that the solution exists, no more."""


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Features (N, D) and (N, E) of the same images -> similarity in [0, 1]."""
    x, y = (features.double() - features.double().mean(0) for features in (x, y))
    cross = (x.T @ y).square().sum()
    return float(cross / ((x.T @ x).norm() * (y.T @ y).norm()))


def linear_r2(
    features: Tensor, values: Tensor, held_features: Tensor, held_values: Tensor
) -> float:
    """Tokens (N, D) and values (N, V) to solve on, others to measure on -> R^2 of the linear map, at most 1."""
    center, mean = features.double().mean(0), values.double().mean(0)
    x, y = features.double() - center, values.double() - mean
    moments = x.T @ x
    shift = _PENALTY * moments.trace() / len(moments)
    shifted = moments + shift * torch.eye(len(moments), dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(shifted, x.T @ y)
    error = held_values.double() - mean - (held_features.double() - center) @ weight
    return float(1 - error.square().sum() / (held_values.double() - mean).square().sum())
