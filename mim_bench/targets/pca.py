"""Coefficients in the training patches' principal components: MAE (He et al. 2022), Table 1d, "PCA".

MAE takes the 96 largest of 768 coefficients of a 16 x 16 patch; here the same share of any patch. The basis is
that of all patches of one pass over the training images, cropped as in pre-training and normalised by the data
set's mean and std.

Legend: B batch, L patches, P = p*p*C values of a patch, dim kept coefficients.
"""

import torch
from torch import Tensor

from mim_bench.config.target_params import PcaParams
from mim_bench.target import TargetContext, TrainingImages, to_rgb
from mim_bench.targets.fitted import FittedTarget
from mim_bench.targets.regression_loss import regression_loss


class PcaTarget(FittedTarget):
    """Largest principal components of each patch, (B, L, dim) float32."""

    Params = PcaParams
    version = PcaParams.version

    mean: Tensor
    basis: Tensor

    def __init__(self, params: PcaParams, context: TargetContext) -> None:
        super().__init__(params, context)
        size = self.geometry.patch_size**2 * self.geometry.in_chans
        self.dim = max(1, round(params.share * size))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.eye(size)[:, : self.dim].clone())

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L, dim) float32, the greatest variance first."""
        self.require_fit()
        return (self.geometry.normalized_patches(images) - self.mean) @ self.basis

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, N, dim) -> (B, N) float32."""
        return regression_loss(self.params.loss, prediction, target)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, dim) -> (B, 3, H, W) in [0, 1]: the patches that the coefficients stand for."""
        pixels = self.geometry.unpatchify(values.float() @ self.basis.T + self.mean)
        return to_rgb(self.geometry.denormalize(pixels))

    @torch.no_grad()
    def fit(self, images: TrainingImages, *, seed: int) -> dict[str, float]:
        """The eigenvectors of the patches' covariance, all in float64; returns the share of variance that is kept."""
        num, total, products = 0, torch.zeros_like(self.mean, dtype=torch.float64), None
        for batch in images:
            rows = self.geometry.normalized_patches(batch).flatten(0, 1).double()
            num, total = num + len(rows), total + rows.sum(0)
            products = rows.T @ rows if products is None else products + rows.T @ rows
        assert products is not None
        mean = total / num
        variances, axes = torch.linalg.eigh(products / num - mean[:, None] * mean)
        kept = axes.flip(1)[:, : self.dim]
        strongest = kept.gather(0, kept.abs().argmax(0, keepdim=True))
        self.mean.copy_(mean)
        self.basis.copy_(kept * strongest.sign())  # the sign of an eigenvector is arbitrary
        self.fitted.fill_(True)
        return {"kept_variance": float(variances.flip(0)[: self.dim].sum() / variances.sum())}
