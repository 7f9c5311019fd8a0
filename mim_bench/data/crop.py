"""Crops: random draws of boxes and flips, and the box of evaluation.

Random-size crops are torchvision's `RandomResizedCrop` (ten tries, then a central crop), fixed-size
crops those of MAE's Table 1e (short side to 256, a random 224 x 224), both as boxes in source pixels.
Deliberate differences: the draws are a function of (seed, epoch, sample index) and of nothing else;
for an output that is not square, aspects are taken relative to the output's, so that the images are
stretched as little as square ones are.

Legend: B images, H W source size, h w output size, T tries.
"""

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mim_bench import rng
from mim_bench.schema import Frozen

Plan = tuple[Tensor, Tensor]
"""Boxes (B, 4) int64 as top, left, height, width in source pixels; flips (B,) bool."""

_TRIES = 10
_FIXED_FRACTION = 224 / 256


def _largest(source_sizes: Tensor, size: tuple[int, int], fraction: float) -> tuple[Tensor, Tensor]:
    """Height and width, (B,) int64 each, of the largest box of the output's aspect, times `fraction`."""
    height, width = source_sizes.double().unbind(1)
    box_height = torch.minimum(height, width * size[0] / size[1])
    box_width = torch.minimum(width, height * size[1] / size[0])
    box_height = (box_height * fraction).round().clamp(min=1).long()
    return box_height, (box_width * fraction).round().clamp(min=1).long()


def eval_box(source_sizes: Tensor, size: tuple[int, int], crop_fraction: float = 1.0) -> Tensor:
    """Central boxes (B, 4) int64: the largest of the output's aspect, its sides times `crop_fraction`.

    `source_sizes` (B, 2) int64 is H, W. At 0.875 a 256-pixel short side gives a 224-pixel box.
    """
    height, width = _largest(source_sizes, size, crop_fraction)
    top, left = (source_sizes[:, 0] - height) // 2, (source_sizes[:, 1] - width) // 2
    return torch.stack([top, left, height, width], dim=1)


class EvalCrop(Frozen):
    """The same central crop in every epoch, never flipped."""

    size: tuple[int, int]
    """Output height and width in pixels."""
    crop_fraction: float = Field(default=1.0, gt=0, le=1)
    """Side of the box over that of the largest box that fits; 0.875 at 224 px."""

    def plan(self, index: Tensor, source_sizes: Tensor, *, seed: int = 0, epoch: int = 0) -> Plan:
        """As `Crop.plan`, without chance: seed and epoch change nothing."""
        boxes = eval_box(source_sizes, self.size, self.crop_fraction)
        return boxes, torch.zeros(len(index), dtype=torch.bool)


class Crop(Frozen):
    """Crops and flips of training."""

    size: tuple[int, int]
    """Output height and width in pixels."""
    mode: Literal["random_size", "fixed_size", "none"] = "random_size"
    """`random_size`: RandomResizedCrop; `fixed_size`: a random place only; `none`: the central crop."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Area of a random-size crop over the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect (width over height) of a random-size crop over the output's aspect."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    crop_fraction: float = Field(default=1.0, gt=0, le=1)
    """Side of the box in mode `none`, as in `EvalCrop`."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if min(self.size) < 1:
            raise ValueError(f"size={self.size}: sides are at least 1 pixel")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale}: 0 < low <= high <= 1 is needed")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio}: 0 < low <= high is needed")
        return self

    def plan(self, index: Tensor, source_sizes: Tensor, *, seed: int, epoch: int) -> Plan:
        """(B,) int64 sample indices and (B, 2) int64 source sizes (H, W), on the CPU -> boxes, flips.

        A row depends on its own index and size, on seed and on epoch: never on the rest of the batch.
        """
        flips = rng.uniform(index, 1, seed=seed, epoch=epoch, stream="flip")[:, 0] < self.flip
        if self.mode == "none":
            return eval_box(source_sizes, self.size, self.crop_fraction), flips
        draws = rng.uniform(index, 2 * _TRIES + 2, seed=seed, epoch=epoch, stream="crop").double()
        if self.mode == "fixed_size":
            height, width = _largest(source_sizes, self.size, _FIXED_FRACTION)
            return _box_at(height, width, source_sizes, draws[:, :2]), flips
        height, width, has_box = self._tries(source_sizes, draws[:, 2:])
        placed = _box_at(height, width, source_sizes, draws[:, :2])
        return torch.where(has_box[:, None], placed, self._fallback(source_sizes)), flips

    def _ratios(self) -> tuple[float, float]:
        aspect = self.size[1] / self.size[0]
        return self.ratio[0] * aspect, self.ratio[1] * aspect

    def _tries(self, source_sizes: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draws (B, 2T) -> height and width (B,) int64 of the first try that fits, and whether one did."""
        low, high = (math.log(value) for value in self._ratios())
        area = source_sizes.double().prod(dim=1, keepdim=True)
        part = self.scale[0] + draws[:, :_TRIES] * (self.scale[1] - self.scale[0])  # (B, T)
        aspect = torch.exp(low + draws[:, _TRIES:] * (high - low))
        height = (area * part / aspect).sqrt().round().long()
        width = (area * part * aspect).sqrt().round().long()
        fits = (height > 0) & (height <= source_sizes[:, :1])
        fits &= (width > 0) & (width <= source_sizes[:, 1:])
        first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
        has_box = fits.any(dim=1)
        # Where no try fits the size is that of a 1 x 1 crop, which `plan` replaces.
        height = torch.where(has_box, height.gather(1, first)[:, 0], 1)
        width = torch.where(has_box, width.gather(1, first)[:, 0], 1)
        return height, width, has_box

    def _fallback(self, source_sizes: Tensor) -> Tensor:
        """(B, 4): the whole image, its longer direction cut until the aspect is allowed."""
        low, high = self._ratios()
        height, width = source_sizes.double().unbind(1)
        box_height = torch.minimum(height, (width / low).round()).clamp(min=1).long()
        box_width = torch.minimum(width, (height * high).round()).clamp(min=1).long()
        top, left = (source_sizes[:, 0] - box_height) // 2, (source_sizes[:, 1] - box_width) // 2
        return torch.stack([top, left, box_height, box_width], dim=1)


def _box_at(height: Tensor, width: Tensor, source_sizes: Tensor, draws: Tensor) -> Tensor:
    """Box sizes (B,) and draws (B, 2) in [0, 1) -> boxes (B, 4), every place equally likely."""
    room = source_sizes - torch.stack([height, width], dim=1) + 1
    corner = (draws * room).floor().long()
    return torch.stack([corner[:, 0], corner[:, 1], height, width], dim=1)
