"""The one training loop: pre-training, probes and fine-tuning differ only in their task.

Order of an epoch, read top to bottom: steps, log lines now and then, then check and save. Everything
random is a function of (seed, epoch, sample index) or of (seed, step), so a checkpoint needs weights,
optimiser and step alone, and a resumed run is bit-equal to one that was never stopped.

With several ranks each takes its local batch, gradients are averaged (torch's DDP, or FSDP where
the weights are split), and rank 0 writes. After a scheduler's signal the training is preempted at the end of the step.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mim_bench import rng
from mim_bench.config.run import RuntimeConfig
from mim_bench.errors import UserError
from mim_bench.train import checkpoint, distributed, preemption
from mim_bench.train.backend import precision
from mim_bench.train.distributed import ParallelLoss
from mim_bench.train.graph import Recordable, StepGraph, prepare, recordable
from mim_bench.train.loss_watch import LossNotFinite, LossWatch
from mim_bench.train.optimizer import learning_rate
from mim_bench.train.training import Outcome, Training

Batches = Callable[[Sequence[Tensor], int], Iterator[tuple[Tensor, Tensor]]]
"""(index batches, epoch) -> (inputs on the device, their int64 indices on the CPU), in that order."""


class Task(Protocol):
    """One training objective: it owns the modules and the loss, and knows nothing of steps or files."""

    @property
    def modules_to_save(self) -> dict[str, nn.Module]:
        """Modules that training changes, by their names in a checkpoint."""
        ...

    def loss(self, inputs: Tensor, index: Tensor, *, epoch: int, step: int) -> Tensor:
        """Inputs and their sample indices (B,) -> mean loss (scalar)."""
        ...

    def after_step(self, step: int, num_steps: int) -> None:
        """Called after each optimiser step; `step` counts those done."""
        ...


class Report(Protocol):
    """Somebody who watches: a progress bar, or nobody."""

    def __call__(
        self, done_steps: int, num_steps: int, images_per_s: float, loss: float
    ) -> None: ...


def autocast(device: torch.device, runtime: RuntimeConfig) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 where that is the precision in force."""
    if precision(device, runtime) == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def train(
    training: Training,
    task: Task,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    report: Report | None = None,
    measure: Callable[[], dict[str, float]] | None = None,
) -> Outcome:
    """Runs a training to its end and returns what it took; `measure` is called after each epoch.

    Raises UserError for a loss that is not finite or a full disk.
    """
    with preemption.training():
        return _Loop(training, task, optimizer, batches, report).run(measure)


class _Loop:
    """One training in progress: `run` is the order of an epoch, the other methods are its parts."""

    def __init__(
        self,
        training: Training,
        task: Task,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        report: Report | None,
    ) -> None:
        """Resumes from the newest usable checkpoint of this very training, if there is one."""
        self.training, self.task, self.optimizer = training, task, optimizer
        self.batches, self.report = batches, report
        self.schedule = training.schedule
        self.modules = task.modules_to_save
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for group in optimizer.param_groups:
            group.setdefault("lr_scale", 1.0)
        self.step_loss = ParallelLoss(task.loss, self.modules)
        self.step, self.seconds_before = 0, 0.0
        self.watch = LossWatch(training.device)
        self.recordable = recordable(task, self.schedule, training.device, training.runtime)
        newest = checkpoint.load_newest_on_all(training.folder / training.name, training.key)
        if newest is not None:
            checkpoint.unpack(newest.tensors, self.modules, optimizer)
            self.step, self.seconds_before = newest.step, newest.seconds
            self.watch.resume(newest)
        self.graph: StepGraph | None = None
        if self.recordable is not None:
            prepare(optimizer, training.device)
            self.graph = StepGraph(partial(self._recorded, self.recordable), optimizer)
        self.log = training.open_log(self.step) if distributed.is_main() else None
        self.started, self.first_step = time.perf_counter(), self.step
        self.saved = self.started

    def run(self, measure: Callable[[], dict[str, float]] | None) -> Outcome:
        """Steps, log lines now and then, then check and save, epoch after epoch."""
        training, parts = self.training, self.schedule.accumulation_steps
        while self.step < training.num_steps:
            epoch, done_in_epoch = divmod(self.step, training.steps_per_epoch)
            index_batches = training.epoch_batches(epoch)[done_in_epoch * parts :]
            stream = self.batches(index_batches, epoch)
            for _ in range(len(index_batches) // parts):
                lr = self._update(stream, epoch)
                is_last = self.step == training.num_steps
                if self.step % training.runtime.log_every_steps == 0 or is_last:
                    self._log_line(lr)
                    if self.step % training.steps_per_epoch and self._is_save_due(
                        epoch, is_end=False
                    ):
                        self._save()
                if self.step % training.steps_per_epoch:
                    self._stop_if_preempted()
            measured = measure() if measure is not None else {}
            if self.log is not None and measured:
                self.log.write(step=self.step, **measured)
            is_last = self.step == training.num_steps
            if is_last or self._is_save_due(epoch, is_end=True):
                self._save()
            self._stop_if_preempted()
        return self._outcome()

    def _update(self, stream: Iterator[tuple[Tensor, Tensor]], epoch: int) -> float:
        """One optimiser step; returns its learning rate."""
        training, schedule = self.training, self.schedule
        lr = learning_rate(schedule, self.step / training.steps_per_epoch)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * group["lr_scale"])
            else:
                group["lr"] = lr * group["lr_scale"]
        # whatever a layer draws itself (drop path) depends on the step alone
        self._seed_generator(rng.integer(seed=training.seed, stream=training.name, index=self.step))
        if self.graph is not None and self.recordable is not None:
            inputs, index = next(stream)
            drawn = self.recordable.draw(index, epoch=epoch, device=inputs.device)
            self.watch.add(self.graph(inputs, drawn), self.step)
        else:
            self._eager(stream, epoch)
        self.step += 1
        self.task.after_step(self.step, training.num_steps)
        return lr

    def _eager(self, stream: Iterator[tuple[Tensor, Tensor]], epoch: int) -> None:
        """Forward and backward of each part, and the optimiser's update."""
        training, parts = self.training, self.schedule.accumulation_steps
        for part in range(parts):
            inputs, index = next(stream)
            with self.step_loss.micro_batch(is_last=part == parts - 1):
                with autocast(training.device, training.runtime):
                    loss = self.step_loss(inputs, index, epoch=epoch, step=self.step) / parts
                loss.backward()
            self.watch.add(loss.detach(), self.step)
        self._apply()

    def _recorded(self, task: Recordable, inputs: Tensor, drawn: Tensor) -> Tensor:
        """A whole step as a function of tensors; returns its loss."""
        with autocast(self.training.device, self.training.runtime):
            loss = task.loss_of(inputs, drawn)
        loss.backward()
        self._apply()
        return loss.detach()

    def _apply(self) -> None:
        """The optimiser's update by the gradients there are."""
        if self.schedule.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.schedule.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _seed_generator(self, seed: int) -> None:
        """The device's generator alone; torch.manual_seed walks a stack trace for devices that are not there."""
        torch.default_generator.manual_seed(seed)
        if self.training.device.type != "cpu":
            torch.get_device_module(self.training.device).manual_seed(seed)

    def _log_line(self, lr: float) -> None:
        """The only place of a step where the host waits for the device."""
        self._check_loss()
        mean_loss = self.watch.read()
        seconds = self._seconds()
        speed = self._images_since_start() / (seconds - self.seconds_before)
        if self.log is not None:
            self.log.write(
                step=self.step, loss=mean_loss, lr=lr, images_per_s=speed, seconds=seconds
            )
        if self.report is not None:
            self.report(self.step, self.training.num_steps, speed, mean_loss)

    def _seconds(self) -> float:
        """Wall time over all restarts, in s."""
        return self.seconds_before + time.perf_counter() - self.started

    def _images_since_start(self) -> int:
        """Images seen since the last restart."""
        return (self.step - self.first_step) * self.schedule.batch_size

    def _is_save_due(self, epoch: int, *, is_end: bool) -> bool:
        """True if a checkpoint is due: by epochs if the user counts in them, else by time, by rank 0's clock."""
        runtime = self.training.runtime
        if runtime.checkpoint_every_epochs is not None:
            return is_end and (epoch + 1) % runtime.checkpoint_every_epochs == 0
        minutes = (time.perf_counter() - self.saved) / 60
        return distributed.any_rank(
            distributed.is_main() and minutes >= runtime.checkpoint_every_minutes
        )

    def _save(self) -> None:
        """Saves, but never weights that a bad loss has touched or that are not finite themselves."""
        self._check_loss()
        self._check_weights()
        tensors = checkpoint.pack(self.modules, self.optimizer)
        unread = self.watch.unread()
        state = checkpoint.Checkpoint(tensors, self.step, self._seconds(), *unread)
        folder, key = self.training.folder / self.training.name, self.training.key
        distributed.on_main(lambda: checkpoint.save(folder, key, state) and None)
        self.saved = time.perf_counter()

    def _check_loss(self) -> None:
        step = self.watch.first_bad_step()
        if step is None:
            return
        training, size, name = self.training, self.schedule.batch_size, self.training.name
        epoch, done_in_epoch = divmod(step, training.steps_per_epoch)
        order = rng.permutation(training.num_images, seed=training.seed, epoch=epoch)
        index = order[done_in_epoch * size : (done_in_epoch + 1) * size]
        indices = ", ".join(map(str, index[:16].tolist())) + (", ..." if size > 16 else "")
        raise LossNotFinite(
            f"{name}: the loss is not finite at step {step} (epoch {epoch}, training images {indices}); "
            f"try {name}.clip_norm=1, a lower {name}.blr, more {name}.warmup_epochs, or "
            "runtime.precision=float32",
            index,
            epoch,
        )

    def _check_weights(self) -> None:
        """The last update has no loss after it that would show what it did."""
        local = [p.to_local() if isinstance(p, DTensor) else p for p in self.parameters]
        is_finite = bool(torch.stack([torch.isfinite(p).all() for p in local]).all())
        if distributed.any_rank(not is_finite):
            name = self.training.name
            raise UserError(
                f"{name}: the weights are not finite after step {self.step}; try a lower {name}.blr, "
                f"{name}.clip_norm=1 or more {name}.warmup_epochs"
            )

    def _stop_if_preempted(self) -> None:
        if preemption.is_stopping():
            if distributed.size() == 1:  # several get their signals at different steps
                self._save()
            raise KeyboardInterrupt
        if preemption.is_preempted():
            self._save()
            preemption.stop()

    def _outcome(self) -> Outcome:
        seconds, num_images = self._seconds(), self._images_since_start()
        return Outcome(
            num_steps=self.training.num_steps,
            images_seen=self.training.num_steps * self.schedule.batch_size,
            seconds=seconds,
            images_per_s=num_images / (seconds - self.seconds_before) if num_images else 0.0,
            final_loss=self.log.last_loss if self.log else None,
            replayed=self.graph is not None and self.graph.graph is not None,
        )
