"""Masks: which patches of an image are hidden, as noise whose smallest values stay visible.

Every sampling is expressed as noise (B, L) and a number of visible patches, MAE's convention; so each image
of a batch hides equally many patches, and the model needs no second code path. True = hidden.

- `random`: MAE (He et al. 2022): uniform noise.
- `block`: BEiT (Bao et al. 2022): rectangles until the quota is nearly met. The generator may stop a
  few patches short (statistics in tests/golden/beit_mask.json); deliberate difference: the shortfall
  is made up with random patches, because a visible-only encoder needs equal counts in a batch.
- `grid`: MAE Table 1f: of every k x k patches one is kept, k = round(1 / sqrt(1 - ratio)).
- `square`: SimMIM (Xie et al. 2022): units of 2 x 2 patches (32 pixels), their hidden number rounded up.
- `multi_block`: I-JEPA (Assran et al. 2023, arXiv 2301.08243, appendix A.1): four blocks of 0.15 to 0.2 of the image
  and aspect 0.75 to 1.5, which may overlap, are hidden.
- `inverse_block`: data2vec 2.0 (Baevski et al. 2022, arXiv 2212.07525, section 3.2): blocks of 3 x 3 patches are kept,
  as many as would cover the visible share if none overlapped.

Deliberate difference of the last two: the ratio is met exactly, by random patches of the larger kind; I-JEPA cuts its
batch to the least count, and both leave the ratio to chance.

Legend: B batch, L patches, G_h x G_w grid.
"""

import math

import torch
from torch import Tensor

from mim_bench import rng
from mim_bench.config.run import MaskConfig
from mim_bench.errors import UserError

_UNIT = 2  # patches along a side of SimMIM's squares: 32 pixels at patch 16
_NUM_BLOCKS, _BLOCK_AREA, _BLOCK_ASPECT = 4, (0.15, 0.2), (0.75, 1.5)  # I-JEPA's configs
_KEPT_SIDE = 3  # data2vec 2.0's blocks for images
_TRIES = 10  # attempts to place one rectangle before the BEiT generator gives up


class MaskSampler:
    """Draws the masks of a run: a function of (seed, epoch, sample index)."""

    def __init__(self, config: MaskConfig, grid: tuple[int, int]) -> None:
        self.config = config
        self.grid = grid
        self.num_patches = grid[0] * grid[1]
        if config.sampling == "grid":
            self.num_visible = int((~self._grid_mask()).sum())
        elif config.sampling == "square":
            if grid[0] % _UNIT or grid[1] % _UNIT:
                raise UserError(
                    f"mask.sampling='square' needs a grid of {_UNIT} x {_UNIT} units of patches, not {grid}"
                )
            num_units = self.num_patches // _UNIT**2
            self.num_visible = self.num_patches - _UNIT**2 * math.ceil(num_units * config.ratio)
            if self.num_visible < 1:
                raise UserError(f"mask.ratio={config.ratio} leaves no unit of `square` visible")
        else:
            self.num_visible = num_visible(self.num_patches, config.ratio)

    def noise(
        self, index: Tensor, *, seed: int, epoch: int, device: torch.device | None = None
    ) -> Tensor:
        """(B,) int64 sample indices -> (B, L) float32; the `num_visible` smallest stay visible.

        On `device`, by default the indices' own. Indices on the CPU let the host run ahead of the device.
        """
        device = device or index.device
        device_index = index.to(device, non_blocking=True)
        noise = rng.uniform(device_index, self.num_patches, seed=seed, epoch=epoch, stream="mask")
        if self.config.sampling == "block":
            num_hidden = self.num_patches - self.num_visible
            hidden = block_masks(index.cpu(), self.grid, num_hidden, self.config, seed, epoch)
            noise = noise + hidden.flatten(1).to(device, non_blocking=True)
        elif self.config.sampling == "grid":
            noise = noise + self._grid_mask().flatten().to(device, non_blocking=True)
        elif self.config.sampling == "square":
            noise = self._of_units(device_index, seed, epoch)
        elif self.config.sampling == "multi_block":
            noise = noise + several_blocks(device_index, self.grid, seed, epoch).flatten(1)
        elif self.config.sampling == "inverse_block":
            kept = kept_blocks(device_index, self.grid, self.num_visible, seed, epoch)
            noise = noise - kept.flatten(1).float()
        return noise

    def _of_units(self, index: Tensor, seed: int, epoch: int) -> Tensor:
        """(B,) -> (B, L): the patches of a unit have the same noise."""
        rows, columns = self.grid[0] // _UNIT, self.grid[1] // _UNIT
        units = rng.uniform(index, rows * columns, seed=seed, epoch=epoch, stream="mask")
        units = units.view(-1, rows, columns)
        return units.repeat_interleave(_UNIT, 1).repeat_interleave(_UNIT, 2).flatten(1)

    def _grid_mask(self) -> Tensor:
        """(G_h, G_w) bool: True but for one patch of every k x k; ratio 0.75 gives k = 2."""
        step = max(2, round(1 / math.sqrt(1 - self.config.ratio)))
        mask = torch.ones(self.grid, dtype=torch.bool)
        mask[::step, ::step] = False
        return mask


def num_visible(num_patches: int, ratio: float) -> int:
    """Patches that stay visible: int(L * (1 - ratio)) in float64, truncated as MAE does."""
    return int(num_patches * (1 - ratio))


def split(noise: Tensor, num_visible: int) -> tuple[Tensor, Tensor]:
    """Noise (B, L) -> patches in the order of their noise (B, L), visible ones first, and mask (B, L) bool.

    MAE's order; equal noise keeps the patch order.
    """
    shuffle = torch.argsort(noise, dim=1, stable=True)
    is_hidden = torch.arange(noise.shape[1], device=noise.device) >= num_visible
    return shuffle, torch.zeros_like(noise, dtype=torch.bool).scatter(
        1, shuffle, is_hidden.expand_as(shuffle)
    )


def block_masks(
    index: Tensor, grid: tuple[int, int], num_hidden: int, config: MaskConfig, seed: int, epoch: int
) -> Tensor:
    """BEiT's block masks for samples (B,) -> (B, G_h, G_w) bool, at most `num_hidden` True each.

    All samples advance together; attempt number n of a sample always uses the sample's n-th draws, so
    its mask does not depend on the others.
    """
    height, width = grid
    mask = torch.zeros(len(index), height, width, dtype=torch.bool)
    failures = torch.zeros(len(index), dtype=torch.int64)
    low = math.log(config.block_min_aspect)
    attempt = 0
    active = torch.arange(len(index))
    while len(active):
        draws = rng.uniform(
            index[active], 4, seed=seed, epoch=epoch, stream=f"block {attempt}"
        ).double()
        remaining = num_hidden - mask[active].flatten(1).sum(1)
        # near the end the interval may run backwards, as in the reference
        area = config.block_min_patches + draws[:, 0] * (remaining - config.block_min_patches)
        aspect = torch.exp(low - 2 * low * draws[:, 1])
        block_h = torch.round(torch.sqrt(area * aspect)).long()
        block_w = torch.round(torch.sqrt(area / aspect)).long()
        top = (draws[:, 2] * (height - block_h + 1)).long()
        left = (draws[:, 3] * (width - block_w + 1)).long()
        corner_and_size = (value[:, None] for value in (top, left, block_h, block_w))
        block = _union(*corner_and_size, grid)
        num_new = (block & ~mask[active]).flatten(1).sum(1)
        fits = (block_h < height) & (block_w < width)
        accepted = fits & (num_new > 0) & (num_new <= remaining)
        mask[active[accepted]] |= block[accepted]
        failures[active] = torch.where(accepted, 0, failures[active] + 1)
        full = remaining - torch.where(accepted, num_new, 0) <= 0
        active = active[(failures[active] < _TRIES) & ~full]
        attempt += 1
    return mask


def several_blocks(index: Tensor, grid: tuple[int, int], seed: int, epoch: int) -> Tensor:
    """(B,) sample indices -> (B, G_h, G_w) bool: the union of I-JEPA's four blocks.

    As there, an image's blocks share their area and aspect, and each has a place of its own.
    """
    height, width = grid
    size = rng.uniform(index, 2, seed=seed, epoch=epoch, stream="blocks").double()
    area = height * width * (_BLOCK_AREA[0] + size[:, 0] * (_BLOCK_AREA[1] - _BLOCK_AREA[0]))
    aspect = _BLOCK_ASPECT[0] + size[:, 1] * (_BLOCK_ASPECT[1] - _BLOCK_ASPECT[0])
    block_h = (area * aspect).sqrt().round().long().clamp(1, max(1, height - 1))
    block_w = (area / aspect).sqrt().round().long().clamp(1, max(1, width - 1))
    position = rng.uniform(index, 2 * _NUM_BLOCKS, seed=seed, epoch=epoch, stream="places").double()
    top = (position[:, :_NUM_BLOCKS] * (height - block_h + 1)[:, None]).long()
    left = (position[:, _NUM_BLOCKS:] * (width - block_w + 1)[:, None]).long()
    return _union(top, left, block_h[:, None], block_w[:, None], grid)


def kept_blocks(
    index: Tensor, grid: tuple[int, int], num_visible: int, seed: int, epoch: int
) -> Tensor:
    """(B,) sample indices -> (B, G_h, G_w) bool: the union of data2vec 2.0's blocks, centred at random patches."""
    height, width = grid
    num = max(1, round(num_visible / _KEPT_SIDE**2))
    position = rng.uniform(index, 2 * num, seed=seed, epoch=epoch, stream="kept").double()
    top = (position[:, :num] * height).long() - _KEPT_SIDE // 2  # blocks may lie over the border
    left = (position[:, num:] * width).long() - _KEPT_SIDE // 2
    side = torch.full_like(top[:, :1], _KEPT_SIDE)
    return _union(top, left, side, side, grid)


def _union(
    top: Tensor, left: Tensor, block_h: Tensor, block_w: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Corners (B, N) and sizes (B, 1) of blocks -> (B, G_h, G_w) bool."""
    rows = torch.arange(grid[0], device=top.device)
    columns = torch.arange(grid[1], device=top.device)
    in_rows = (rows >= top[..., None]) & (rows < (top + block_h)[..., None])
    in_columns = (columns >= left[..., None]) & (columns < (left + block_w)[..., None])
    return (in_rows[..., :, None] & in_columns[..., None, :]).any(1)
