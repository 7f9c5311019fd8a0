"""Masks that the host draws, drawn by another thread before the training asks for them.

BEiT's block masks take the host 20 to 50 ms for a batch of 1,024 to 4,096 images, as long as a GPU takes for the whole
step of a small model. They are a function of (seed, epoch, sample index), so who draws them, and when, changes nothing.
One thread: with more, torch's own would multiply.

Legend: B samples of a batch, L patches.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from mim_bench.model.masking import MaskSampler

_AHEAD = 4
"""Batches that are drawn or waiting for it."""


class DrawnAhead:
    """A sampler whose next batches are known, and drawn on the CPU in the meantime."""

    def __init__(self, sampler: MaskSampler) -> None:
        self.sampler = sampler
        self.pool = ThreadPoolExecutor(1, "masks")
        self.waiting: deque[Tensor] = deque()
        self.drawn: deque[tuple[Tensor, Future[Tensor]]] = deque()

    def expect(self, index_batches: Sequence[Tensor], *, seed: int, epoch: int) -> None:
        """Begins to draw these batches (B,), in this order; what was expected before is dropped."""
        for _, future in self.drawn:
            future.cancel()
        self.drawn.clear()
        self.waiting = deque(index_batches)
        for _ in range(_AHEAD):
            self._begin(seed, epoch)

    def noise(
        self, index: Tensor, *, seed: int, epoch: int, device: torch.device | None = None
    ) -> Tensor:
        """As the sampler's: (B,) sample indices -> (B, L); of a batch that is not the next one drawn here and now."""
        device = device or index.device
        if not self.drawn or not torch.equal(self.drawn[0][0], index):
            return self.sampler.noise(index, seed=seed, epoch=epoch, device=device)
        _, future = self.drawn.popleft()
        self._begin(seed, epoch)
        noise = future.result()
        return noise.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else noise

    def _begin(self, seed: int, epoch: int) -> None:
        if self.waiting:
            index = self.waiting.popleft()
            future = self.pool.submit(self.sampler.noise, index, seed=seed, epoch=epoch)
            self.drawn.append((index, future))
