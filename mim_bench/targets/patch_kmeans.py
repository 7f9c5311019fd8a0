"""k-means index of each patch's pixels: ClusterMIM (Du et al. 2024, arXiv 2407.09087), "K-MIM-Pixel".

A tokenizer without a network: the nearest of K mean patches (ClusterMIM: K = 50) of the training images.

Legend: B batch, L patches, P = p*p*C values of a patch, K clusters = dim.
"""

import torch
from torch import Tensor

from mim_bench import rng
from mim_bench.config.target_params import PatchKmeansParams
from mim_bench.target import TargetContext, TrainingImages, to_rgb
from mim_bench.targets.class_target import ClassTarget
from mim_bench.targets.fitted import FittedTarget, k_means, nearest, sample_rows

_SAMPLES = 50_000


class PatchKmeansTarget(ClassTarget, FittedTarget):
    """Index of the nearest mean patch, (B, L) int64."""

    Params = PatchKmeansParams
    version = PatchKmeansParams.version

    codebook: Tensor

    def __init__(self, params: PatchKmeansParams, context: TargetContext) -> None:
        super().__init__(params, context)
        self.dim = params.num_clusters
        size = self.geometry.patch_size**2 * self.geometry.in_chans
        self.register_buffer("codebook", torch.zeros(self.dim, size))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L) int64."""
        self.require_fit()
        return nearest(self.geometry.normalized_patches(images), self.codebook)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L) indices -> (B, 3, H, W): the mean patches."""
        return to_rgb(self.geometry.denormalize(self.geometry.unpatchify(self.codebook[values])))

    @torch.no_grad()
    def fit(self, images: TrainingImages, *, seed: int) -> dict[str, float]:
        """k-means on 50,000 patches; returns how evenly the clusters are used by them."""
        draw = rng.integer(seed=seed, stream="patch k-means")
        rows = sample_rows(images, self.geometry.normalized_patches, _SAMPLES, seed=draw)
        codebook, values = k_means(rows, self.dim, "num_clusters")
        self.codebook.copy_(codebook)
        self.fitted.fill_(True)
        return values
