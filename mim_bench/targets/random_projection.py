"""A fixed random projection of each patch, read off in a fixed random codebook: BEST-RQ (Chiu et al. 2022, arXiv
2202.01855) and SplitMask's random tokenizers. How much of a token target's worth is the tokenizer, how much the masks?

The patch, normalised to mean 0 and std 1, is projected to `width` values; its class is the entry of the codebook
that has the smallest angle to it. Nothing is learned. Drawn from the run's seed.

Legend: B batch, L patches, P = p*p*C values of a patch, W width of the codebook, V entries = dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_bench import rng
from mim_bench.config.target_params import RandomProjectionParams
from mim_bench.target import TargetContext
from mim_bench.targets.class_target import ClassTarget
from mim_bench.targets.feature_picture import feature_picture


class RandomProjectionTarget(ClassTarget):
    """Index of the nearest random code, (B, L) int64."""

    Params = RandomProjectionParams
    version = RandomProjectionParams.version
    picture_uses_ground_truth = True

    def __init__(self, params: RandomProjectionParams, context: TargetContext) -> None:
        super().__init__(params, context)
        self.dim = params.vocab_size
        size = self.geometry.patch_size**2 * self.geometry.in_chans
        generator = torch.Generator().manual_seed(
            rng.integer(seed=context.seed, stream="random projection")
        )
        projection = torch.randn(size, params.width, generator=generator) / size**0.5
        codes = F.normalize(torch.randn(self.dim, params.width, generator=generator), dim=1)
        self.register_buffer("_projection", projection.double(), persistent=False)
        self.register_buffer("_codes", codes.double(), persistent=False)
        self._projection: Tensor
        self._codes: Tensor

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L) int64; float64, so that few ties depend on rounding."""
        patches = self.geometry.normalized_patches(images).double()
        centred = patches - patches.mean(-1, keepdim=True)
        normalized = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return (normalized @ self._projection @ self._codes.T).argmax(-1)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L) indices -> (B, 3, H, W): principal components of their codes as red, green and blue."""
        return feature_picture(self._codes[values], self._codes[self(images)], self.geometry)
