"""Square cells of each patch, whose mean colours a target classifies.

Legend: B batch, C channels, H W image, L patches, s cells along a patch's side, K = s*s cells of a patch.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from mim_bench.errors import UserError
from mim_bench.target import Geometry, to_rgb


@dataclass(frozen=True)
class Cells:
    """The patches of a geometry cut into s x s cells; UserError where that leaves no whole pixels."""

    geometry: Geometry
    per_side: int
    """s."""

    def __post_init__(self) -> None:
        if self.geometry.patch_size % self.per_side:
            raise UserError(
                f"cells_per_side={self.per_side}: allowed: divisors of the patch size {self.geometry.patch_size}"
            )

    def means(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> mean 8-bit levels (B, L, K, C), cells row by row.

        Sums of whole numbers: the same on every device.
        """
        levels = F.avg_pool2d(
            (images.float() * 255).round(), self.geometry.patch_size // self.per_side
        )
        tiles = levels.unflatten(3, (-1, self.per_side)).unflatten(2, (-1, self.per_side))
        return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)

    def picture(self, colors: Tensor) -> Tensor:
        """Colours in [0, 1] (B, L, K, C) -> (B, 3, H, W)."""
        side, grid = self.per_side, self.geometry.grid
        tiles = colors.unflatten(2, (side, side)).unflatten(1, grid)  # (B, G_h, G_w, s, s, C)
        images = tiles.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return F.interpolate(to_rgb(images), size=self.geometry.image_size, mode="nearest")
