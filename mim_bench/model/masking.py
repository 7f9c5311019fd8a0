"""Masks: which patches of an image are hidden, as noise whose smallest values stay visible.

Every sampling is expressed as noise (B, L) and a number of visible patches, MAE's convention; so each image
of a batch hides equally many patches, and the model needs no second code path. True = hidden.

- `random`: MAE (He et al. 2022): uniform noise.
- `block`: BEiT (Bao et al. 2022): rectangles until the quota is nearly met. The generator may stop a
  few patches short (statistics in tests/golden/beit_mask.json); deliberate difference: the shortfall
  is made up with random patches, because a visible-only encoder needs equal counts in a batch.
- `grid`: MAE Table 1f: of every k x k patches one is kept, k = round(1 / sqrt(1 - ratio)).

Legend: B batch, L patches, G_h x G_w grid.
"""

import math

import torch
from torch import Tensor

from mim_bench import rng
from mim_bench.config.run import MaskConfig

_TRIES = 10  # attempts to place one rectangle before the BEiT generator gives up


class MaskSampler:
    """Draws the masks of a run: a function of (seed, epoch, sample index)."""

    def __init__(self, config: MaskConfig, grid: tuple[int, int]) -> None:
        self.config = config
        self.grid = grid
        self.num_patches = grid[0] * grid[1]
        if config.sampling == "grid":
            self.num_visible = int((~self._grid_mask()).sum())
        else:
            self.num_visible = num_visible(self.num_patches, config.ratio)

    def noise(
        self, index: Tensor, *, seed: int, epoch: int, device: torch.device | None = None
    ) -> Tensor:
        """(B,) int64 sample indices -> (B, L) float32; the `num_visible` smallest stay visible.

        On `device`, by default the indices' own. Indices on the CPU let the host run ahead of the device.
        """
        device = device or index.device
        there = index.to(device, non_blocking=True)
        noise = rng.uniform(there, self.num_patches, seed=seed, epoch=epoch, stream="mask")
        if self.config.sampling == "block":
            num_hidden = self.num_patches - self.num_visible
            hidden = block_masks(index.cpu(), self.grid, num_hidden, self.config, seed, epoch)
            noise = noise + hidden.flatten(1).to(device, non_blocking=True)
        elif self.config.sampling == "grid":
            noise = noise + self._grid_mask().flatten().to(device, non_blocking=True)
        return noise

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
    rows, columns = torch.arange(height), torch.arange(width)
    mask = torch.zeros(len(index), height, width, dtype=torch.bool)
    failures = torch.zeros(len(index), dtype=torch.int64)
    low = math.log(config.block_min_aspect)
    attempt = 0
    active = torch.arange(len(index))
    while len(active):
        drawn = rng.uniform(
            index[active], 4, seed=seed, epoch=epoch, stream=f"block {attempt}"
        ).double()
        remaining = num_hidden - mask[active].flatten(1).sum(1)
        # near the end the interval may run backwards, as in the reference
        area = config.block_min_patches + drawn[:, 0] * (remaining - config.block_min_patches)
        aspect = torch.exp(low - 2 * low * drawn[:, 1])
        block_h = torch.round(torch.sqrt(area * aspect)).long()
        block_w = torch.round(torch.sqrt(area / aspect)).long()
        top = (drawn[:, 2] * (height - block_h + 1)).long()
        left = (drawn[:, 3] * (width - block_w + 1)).long()
        in_rows = (rows >= top[:, None]) & (rows < (top + block_h)[:, None])
        in_columns = (columns >= left[:, None]) & (columns < (left + block_w)[:, None])
        block = in_rows[:, :, None] & in_columns[:, None, :]
        num_new = (block & ~mask[active]).flatten(1).sum(1)
        fits = (block_h < height) & (block_w < width)
        accepted = fits & (num_new > 0) & (num_new <= remaining)
        mask[active[accepted]] |= block[accepted]
        failures[active] = torch.where(accepted, 0, failures[active] + 1)
        full = remaining - torch.where(accepted, num_new, 0) <= 0
        active = active[(failures[active] < _TRIES) & ~full]
        attempt += 1
    return mask
