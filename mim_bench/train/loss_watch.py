"""The sum of the losses and the first that is not finite, kept on the device without waiting for it."""

import torch
from torch import Tensor

from mim_bench.errors import UserError
from mim_bench.train import checkpoint, distributed


class LossNotFinite(UserError):
    """The first step whose loss is not finite."""

    def __init__(self, line: str, index: Tensor, epoch: int) -> None:
        super().__init__(line)
        self.index, self.epoch = index, epoch


class LossWatch:
    """Sums losses and remembers the first bad step."""

    def __init__(self, device: torch.device) -> None:
        self.sum = torch.zeros((), device=device)
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self.steps: set[int] = set()
        self.steps_before = 0

    def resume(self, loaded: checkpoint.Checkpoint) -> None:
        """Goes on with the sum that a checkpoint was written in the middle of."""
        self.sum += loaded.loss_sum
        self.steps_before = loaded.loss_steps

    def unread(self) -> tuple[float, int]:
        """Sum of the mean losses since the last `read`, over all ranks, and the number of steps."""
        total = distributed.all_reduce_sum(self.sum.clone()) / distributed.size()
        return total.item(), self.steps_before + len(self.steps)

    def add(self, loss: Tensor, step: int) -> None:
        self.sum += loss.float()
        is_first_bad = ~torch.isfinite(loss) & (self.first_bad < 0)
        self.first_bad = torch.where(is_first_bad, step, self.first_bad)
        self.steps.add(step)

    def read(self) -> float:
        """The mean loss since the last call."""
        total, num_steps = self.unread()
        self.sum.zero_()
        self.steps.clear()
        self.steps_before = 0
        return total / num_steps

    def first_bad_step(self) -> int | None:
        """The first step on any rank whose loss was not finite."""
        never = torch.iinfo(torch.int64).max
        step = int(
            distributed.all_reduce_min(torch.where(self.first_bad < 0, never, self.first_bad))
        )
        return None if step == never else step
