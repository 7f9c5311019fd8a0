"""Mean colour of a patch, or of its cells, at few bits a channel: Dosovitskiy et al. 2021 (ViT, arXiv 2010.11929),
appendix B.1.2, masked patch prediction.

- `mean_color`: one mean colour, 3 bits a channel: 512 classes (their target 1);
- `downsized`: the patch averaged down to 4 x 4 cells, each of 512 classes (their target 2).

Legend: B batch, C channels, L patches, K cells of a patch, V = 2^(bits * C) classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_bench.config.target_params import MeanColorParams
from mim_bench.errors import UserError
from mim_bench.target import Target, TargetContext, to_rgb
from mim_bench.targets.class_loss import class_loss, most_likely


class MeanColorTarget(Target):
    """Class of the mean colour of each patch (B, L), or of each of its cells (B, L, K)."""

    Params = MeanColorParams
    version = MeanColorParams.version

    def __init__(self, params: MeanColorParams, context: TargetContext) -> None:
        super().__init__(params, context)
        patch, channels = self.geometry.patch_size, self.geometry.in_chans
        if patch % params.cells_per_side:
            raise UserError(
                f"cells_per_side={params.cells_per_side}: allowed: divisors of the patch size {patch}"
            )
        if params.bits * channels > 16:
            raise UserError(
                f"bits={params.bits}: allowed with {channels} channels: at most {16 // channels}"
            )
        self.num_levels = 2**params.bits
        self.num_cells = params.cells_per_side**2
        self.dim = self.num_cells * self.num_levels**channels
        place = torch.tensor([self.num_levels**c for c in range(channels)])
        self.register_buffer("_place", place.view(1, channels, 1, 1), persistent=False)
        self._place: Tensor

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L) or (B, L, K) int64; cells row by row."""
        levels = (images.float() * 255).round()  # sums of whole numbers: the same on every device
        means = F.avg_pool2d(levels, self.geometry.patch_size // self.params.cells_per_side)
        level = (means * (self.num_levels / 256)).long().clamp_(max=self.num_levels - 1)
        classes = (level * self._place).sum(1)  # (B, cells down, cells across)
        side = self.params.cells_per_side
        cells = classes.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
        found = cells.flatten(3).flatten(1, 2)
        return found[..., 0] if self.num_cells == 1 else found

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Logits (B, N, dim) and classes -> (B, N) cross-entropy in nats, float32, the mean over cells."""
        return class_loss(prediction, target)

    def decode(self, prediction: Tensor) -> Tensor:
        """(B, L, dim) logits -> classes."""
        return most_likely(prediction, self.num_cells)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """Classes -> (B, 3, H, W): the middle colour of each class."""
        side, (rows, columns) = self.params.cells_per_side, self.geometry.grid
        cells = values.view(len(values), rows, columns, side, side).transpose(2, 3)
        classes = cells.reshape(len(values), 1, rows * side, columns * side)
        level = classes // self._place % self.num_levels
        drawn = (level.float() + 0.5) / self.num_levels
        return F.interpolate(to_rgb(drawn), size=self.geometry.image_size, mode="nearest")
