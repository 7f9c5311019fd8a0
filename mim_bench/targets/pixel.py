"""Pixels, the plain target: He et al., Masked Autoencoders Are Scalable Vision Learners (CVPR 2022), Table 1d.

As in the official code (facebookresearch/mae, efb2a80, `forward_loss` without `norm_pix_loss`) the values
are those the encoder sees: normalised by the data set's mean and std. SimMIM differs in the loss alone
(`loss = "l1"`).

Legend: B batch, C channels, H W image, L patches, p patch side, dim = p*p*C, channel fastest.
"""

import torch
from torch import Tensor

from mim_bench.config.target_params import PixelParams
from mim_bench.target import Target, TargetContext, to_rgb
from mim_bench.targets.regression_loss import regression_loss


class PixelTarget(Target):
    """Normalised pixels of each patch."""

    Params = PixelParams
    version = PixelParams.version

    def __init__(self, params: PixelParams, context: TargetContext) -> None:
        super().__init__(params, context)
        geometry = context.geometry
        self.dim = geometry.patch_size**2 * geometry.in_chans

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L, p*p*C) float32, normalised."""
        return self.geometry.normalized_patches(images)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, L, dim) -> (B, L) float32."""
        return regression_loss(self.params.loss, prediction, target)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, dim) -> (B, 3, H, W) in [0, 1]: mean and std put back, clamped."""
        return to_rgb(self.geometry.denormalize(self.geometry.unpatchify(values.float())))
