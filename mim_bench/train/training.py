"""Description of one training: its data order, its files, its outcome. `mim_bench.train.loop` runs it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mim_bench import rng
from mim_bench.config.run import RuntimeConfig
from mim_bench.config.schedule import ScheduleConfig
from mim_bench.train import distributed
from mim_bench.train.boards import open_boards
from mim_bench.train.log import TrainingLog


@dataclass(frozen=True)
class Outcome:
    """Steps, images and time of a training."""

    num_steps: int
    images_seen: int
    seconds: float
    """Wall time over all restarts, in s."""
    images_per_s: float
    """Since the last restart, log and save included; 0 if nothing was left to do."""
    final_loss: float | None
    """Mean over the last logged steps; unset if nothing was left to do."""
    replayed: bool
    """True if steps were replayed as one CUDA graph."""


@dataclass(frozen=True)
class Training:
    """One training to run to its end, from wherever its folder says it stands."""

    name: str
    """`pretrain`, `finetune`, ...: its log is `<name>.jsonl`, its checkpoints are in `<name>/`."""
    key: str
    """Hash of all that it depends on; a checkpoint with another key is refused."""
    folder: Path
    schedule: ScheduleConfig
    seed: int
    num_images: int
    runtime: RuntimeConfig
    device: torch.device

    @property
    def log(self) -> Path:
        """The learning curve."""
        return self.folder / f"{self.name}.jsonl"

    def open_log(self, step: int) -> TrainingLog:
        """The learning curve up to a step, to write on."""
        boards = open_boards(self.runtime, self.log.parent)
        return TrainingLog(self.log, step, self.steps_per_epoch, boards)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only, so that every step sees `batch_size` images."""
        return self.num_images // self.schedule.batch_size

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.schedule.epochs

    def epoch_batches(self, epoch: int) -> list[Tensor]:
        """This rank's local batches of sample indices in the epoch's order, `accumulation_steps` a step."""
        order = rng.permutation(self.num_images, seed=self.seed, epoch=epoch)
        used_order = order[: self.steps_per_epoch * self.schedule.batch_size]
        part = self.schedule.batch_size // self.schedule.accumulation_steps
        return [distributed.local_batch(batch) for batch in used_order.split(part)]
