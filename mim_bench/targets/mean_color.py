"""Mean colour of a patch, or of its cells, at few bits a channel: Dosovitskiy et al. 2021 (ViT, arXiv 2010.11929),
appendix B.1.2, masked patch prediction.

- `mean_color`: one mean colour, 3 bits a channel: 512 classes (their target 1);
- `downsized`: the patch averaged down to 4 x 4 cells, each of 512 classes (their target 2).

Legend: B batch, C channels, L patches, K cells of a patch, V = 2^(bits * C) classes.
"""

import torch
from torch import Tensor

from mim_bench.config.target_params import MeanColorParams
from mim_bench.errors import UserError
from mim_bench.target import TargetContext
from mim_bench.targets.cells import Cells
from mim_bench.targets.class_target import ClassTarget


class MeanColorTarget(ClassTarget):
    """Class of the mean colour of each patch (B, L), or of each of its cells (B, L, K)."""

    Params = MeanColorParams
    version = MeanColorParams.version

    def __init__(self, params: MeanColorParams, context: TargetContext) -> None:
        super().__init__(params, context)
        channels = self.geometry.in_chans
        self.cells = Cells(self.geometry, params.cells_per_side)
        if params.bits * channels > 16:
            raise UserError(
                f"bits={params.bits}: allowed with {channels} channels: at most {16 // channels}"
            )
        self.num_levels = 2**params.bits
        self.num_indices = params.cells_per_side**2
        self.dim = self.num_indices * self.num_levels**channels
        place_value = torch.tensor([self.num_levels**c for c in range(channels)])
        self.register_buffer("_place", place_value, persistent=False)
        self._place: Tensor

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L) or (B, L, K) int64; cells row by row."""
        level = (self.cells.means(images) * (self.num_levels / 256)).long()
        indices = (level.clamp_(max=self.num_levels - 1) * self._place).sum(-1)
        return indices[..., 0] if self.num_indices == 1 else indices

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """Classes -> (B, 3, H, W): the middle colour of each class."""
        classes = values.view(*values.shape[:2], self.num_indices, 1)
        level = classes // self._place % self.num_levels
        return self.cells.picture((level.float() + 0.5) / self.num_levels)
