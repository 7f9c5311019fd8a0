"""Wavelet coefficients of each patch, level by level: WaMIM (Xiang et al. 2025, arXiv 2503.00782).

Haar's orthonormal wavelets down to single coefficients or to `levels`. Each level counts alike in the loss, however
many coefficients it has: with equal weights the squared error would be that of the pixels.

Deliberate difference: WaMIM predicts each level from another block of the encoder; here the decoder predicts all
levels, as for every other target.

Legend: B batch, C channels, L patches, p patch side, P = p*p coefficients a channel.
"""

import torch
from torch import Tensor

from mim_bench.config.target_params import WaveletParams
from mim_bench.errors import UserError
from mim_bench.target import Target, TargetContext, to_rgb


class WaveletTarget(Target):
    """Haar coefficients of each patch, (B, L, p*p*C) float32, coarsest first, channel fastest."""

    Params = WaveletParams
    version = WaveletParams.version

    def __init__(self, params: WaveletParams, context: TargetContext) -> None:
        super().__init__(params, context)
        patch = self.geometry.patch_size
        max_level = patch.bit_length() - 1
        if patch != 2**max_level or max_level < 1:
            raise UserError(f"wavelet: the patch size {patch} is no power of two from 2")
        levels = params.levels or max_level
        if levels > max_level:
            raise UserError(
                f"levels={levels}: allowed: 1 to {max_level} for patches of {patch} pixels"
            )
        self.dim = patch**2 * self.geometry.in_chans
        basis, level = haar(patch, levels)
        counts = torch.bincount(level)
        weight = 1 / (len(counts) * counts[level] * self.geometry.in_chans)
        self.register_buffer("_basis", basis, persistent=False)
        self.register_buffer(
            "_weight", weight.repeat_interleave(self.geometry.in_chans), persistent=False
        )
        self._basis: Tensor
        self._weight: Tensor

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L, p*p*C) float32, of the normalised image."""
        patches = self.geometry.normalized_patches(images)
        pixels = patches.unflatten(-1, (-1, self.geometry.in_chans))  # (B, L, P, C)
        return (self._basis @ pixels).flatten(2)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, N, dim) -> (B, N) float32: the mean over levels of their mean squared errors."""
        return ((prediction.float() - target).square() * self._weight).sum(-1)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, dim) -> (B, 3, H, W) in [0, 1]: the pixels with these coefficients."""
        coefficients = values.float().unflatten(-1, (-1, self.geometry.in_chans))
        pixels = (self._basis.T @ coefficients).flatten(2)
        return to_rgb(self.geometry.denormalize(self.geometry.unpatchify(pixels)))


def haar(side: int, levels: int) -> tuple[Tensor, Tensor]:
    """Orthonormal (P, P) float32, a row a coefficient of the pixels row by row, and (P,) int64 its level.

    Level 0 is the average that is left, then the details from the coarsest to the finest.
    """
    low, rows, level = torch.eye(side, dtype=torch.float64), [], []
    for depth in range(levels):  # from the finest
        pairs = low.view(-1, 2, side)
        mean, detail = (pairs[:, 0] + pairs[:, 1]) / 2**0.5, (pairs[:, 0] - pairs[:, 1]) / 2**0.5
        details = [torch.kron(a, b) for a, b in ((mean, detail), (detail, mean), (detail, detail))]
        rows.insert(0, torch.cat(details))
        level.insert(0, torch.full((len(rows[0]),), levels - depth))
        low = mean
    average = torch.kron(low, low)
    rows.insert(0, average)
    level.insert(0, torch.zeros(len(average), dtype=torch.int64))
    return torch.cat(rows).float(), torch.cat(level)
