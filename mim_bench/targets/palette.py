"""Colour-cluster index of each pixel of the downsized patch: iGPT (Chen et al. 2020), as a target in SimMIM's
section 4.1.3, "color clustering".

The palette is found by k-means on colours of the training images (iGPT: 512 clusters of RGB values).

Legend: B batch, C channels, L patches, K pixels of a downsized patch, V colours of the palette.
"""

import torch
from torch import Tensor

from mim_bench import rng
from mim_bench.config.target_params import PaletteParams
from mim_bench.target import TargetContext, TrainingImages
from mim_bench.targets.cells import Cells
from mim_bench.targets.class_target import ClassTarget
from mim_bench.targets.fitted import FittedTarget, k_means, nearest, sample_rows

_SAMPLES = 50_000


class PaletteTarget(ClassTarget, FittedTarget):
    """Palette index of each pixel of each downsized patch, (B, L, K) int64; (B, L) for a single one."""

    Params = PaletteParams
    version = PaletteParams.version

    palette: Tensor

    def __init__(self, params: PaletteParams, context: TargetContext) -> None:
        super().__init__(params, context)
        self.cells = Cells(self.geometry, params.cells_per_side)
        self.num_indices = params.cells_per_side**2
        self.dim = self.num_indices * params.num_colors
        self.register_buffer("palette", torch.zeros(params.num_colors, self.geometry.in_chans))

    def _colors(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> colours of the downsized pixels, (B, L, K, C), in [0, 1]."""
        return self.cells.means(images) / 255

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L, K) int64, or (B, L) where K is 1."""
        self.require_fit()
        indices = nearest(self._colors(images), self.palette)
        return indices[..., 0] if self.num_indices == 1 else indices

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """Indices -> (B, 3, H, W): their colours."""
        return self.cells.picture(self.palette[values.view(*values.shape[:2], self.num_indices)])

    @torch.no_grad()
    def fit(self, images: TrainingImages, *, seed: int) -> dict[str, float]:
        """k-means on 50,000 colours; returns how evenly the palette is used by them."""
        draw = rng.integer(seed=seed, stream="palette")
        rows = sample_rows(
            images, lambda batch: self._colors(batch).flatten(1, 2), _SAMPLES, seed=draw
        )
        codebook, values = k_means(rows, self.params.num_colors, "num_colors")
        self.palette.copy_(codebook)
        self.fitted.fill_(True)
        return values
