"""Pixels normalised per patch: He et al., Masked Autoencoders Are Scalable Vision Learners (CVPR 2022), Table 1d.

Section 3, "Reconstruction target": the mean and std of all p*p*C values of a patch, over channels together,
normalise it. As in the official code (facebookresearch/mae, efb2a80, `norm_pix_loss`) the variance is
the unbiased one, eps stands under the root, and the data set's mean and std normalise the image first, which
weighs the channels.

Legend: B batch, C channels, H W image, L patches, p patch side, dim = p*p*C, channel fastest.
"""

from typing import ClassVar

import torch
from torch import Tensor

from mim_bench.config.target_params import NormPixelParams
from mim_bench.errors import UserError
from mim_bench.target import Target, TargetContext, to_rgb
from mim_bench.targets.regression_loss import regression_loss


class NormPixelTarget(Target):
    """Pixels of each patch, normalised by the patch's own mean and std."""

    Params = NormPixelParams
    version = NormPixelParams.version
    picture_uses_ground_truth: ClassVar[bool] = True

    def __init__(self, params: NormPixelParams, context: TargetContext) -> None:
        super().__init__(params, context)
        geometry = context.geometry
        self.dim = geometry.patch_size**2 * geometry.in_chans
        if self.dim < 2:
            raise UserError("norm_pixel needs patches of at least 2 values; raise patch_size")

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) -> centred pixels (B, L, dim), their mean and their std, both (B, L, 1)."""
        patches = self.geometry.normalized_patches(images)
        mean = patches.mean(dim=-1, keepdim=True)
        centred = patches - mean
        variance = centred.square().sum(dim=-1, keepdim=True) / (self.dim - 1)
        return centred, mean, (variance + self.params.eps).sqrt()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L, p*p*C) float32 of mean 0 and variance 1 (flat: 0)."""
        centred, _, std = self._statistics(images)
        return centred / std

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, L, dim) -> (B, L) float32."""
        return regression_loss(self.params.loss, prediction, target)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, dim) -> (B, 3, H, W) in [0, 1]: each patch's true mean and std put back, clamped."""
        _, mean, std = self._statistics(images)
        pixels = self.geometry.unpatchify(values.float() * std + mean)
        return to_rgb(self.geometry.denormalize(pixels))
