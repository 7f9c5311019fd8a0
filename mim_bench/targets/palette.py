"""Colour-cluster index of each pixel of the downsized patch: iGPT (Chen et al. 2020), as a target in SimMIM's
section 4.1.3, "color clustering".

The palette is found by k-means on colours of the training images (iGPT: 512 clusters of RGB values).

Legend: B batch, C channels, L patches, K pixels of a downsized patch, V colours of the palette.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_bench import rng
from mim_bench.config.target_params import PaletteParams
from mim_bench.errors import UserError
from mim_bench.target import TargetContext, TrainingImages, to_rgb
from mim_bench.targets.class_loss import class_loss, most_likely
from mim_bench.targets.fitted import FittedTarget, centers, nearest, perplexity, sample_rows

_SAMPLES = 50_000


class PaletteTarget(FittedTarget):
    """Palette index of each pixel of each downsized patch, (B, L, K) int64; (B, L) for a single one."""

    Params = PaletteParams
    version = PaletteParams.version

    palette: Tensor

    def __init__(self, params: PaletteParams, context: TargetContext) -> None:
        super().__init__(params, context)
        patch = self.geometry.patch_size
        if patch % params.cells_per_side:
            raise UserError(
                f"cells_per_side={params.cells_per_side}: allowed: divisors of the patch size {patch}"
            )
        self.num_cells = params.cells_per_side**2
        self.dim = self.num_cells * params.num_colors
        self.register_buffer("palette", torch.zeros(params.num_colors, self.geometry.in_chans))

    def _colors(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> colours of the downsized pixels, (B, L, K, C), in [0, 1]."""
        side = self.params.cells_per_side
        levels = F.avg_pool2d((images.float() * 255).round(), self.geometry.patch_size // side)
        cells = (levels / 255).unflatten(3, (-1, side)).unflatten(2, (-1, side))
        return cells.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L, K) int64, or (B, L) where K is 1."""
        self.require_fit()
        found = nearest(self._colors(images), self.palette)
        return found[..., 0] if self.num_cells == 1 else found

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Logits (B, N, dim) and indices -> (B, N) cross-entropy in nats, float32, the mean over pixels."""
        return class_loss(prediction, target)

    def decode(self, prediction: Tensor) -> Tensor:
        """(B, L, dim) logits -> indices."""
        return most_likely(prediction, self.num_cells)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """Indices -> (B, 3, H, W): their colours."""
        side, (rows, columns) = self.params.cells_per_side, self.geometry.grid
        cells = values.view(len(values), rows, columns, side, side).transpose(2, 3)
        colors = self.palette[cells.reshape(len(values), rows * side, columns * side)]
        drawn = to_rgb(colors.movedim(-1, 1))
        return F.interpolate(drawn, size=self.geometry.image_size, mode="nearest")

    @torch.no_grad()
    def fit(self, images: TrainingImages, *, seed: int) -> dict[str, float]:
        """k-means on 50,000 colours; figures: how evenly the palette is used by them."""
        draw = rng.integer(seed=seed, stream="palette")
        rows = sample_rows(
            images, lambda batch: self._colors(batch).flatten(1, 2), _SAMPLES, seed=draw
        )
        self.palette.copy_(centers(rows, self.params.num_colors, "num_colors"))
        self.fitted.fill_(True)
        index = nearest(rows, self.palette.cpu())
        return {"codebook_perplexity": perplexity(index, self.params.num_colors)}
