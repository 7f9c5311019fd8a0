"""A training step as one CUDA graph: recorded once, replayed with new images, masks and learning rate.

A small model's step is some 400 kernels of microseconds, each of which Python takes longer to launch than the GPU to
run: on one H200 a step of preset `small` took 13.1 ms compiled, and 1.3 ms replayed. What is random, and what depends
on the epoch, is drawn outside and copied in; inside there is neither a random number nor a wait for the device.
The numbers are those of the same kernels, so a run that is resumed, and so begins with steps that are not replayed,
ends bit-equal (`tests/gpu/gpu_day.py` compares).

Only training on one process, without accumulation, by a task that says what to draw. What cannot be recorded, such as
a target of somebody's that waits for the device, runs as before, with a warning.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mim_bench.config.run import RuntimeConfig
from mim_bench.config.schedule import ScheduleConfig
from mim_bench.train import distributed

_logger = logging.getLogger(__name__)
_EAGER_STEPS = 3
"""Real steps that come first, so that whatever is made once is made before the recording."""


@runtime_checkable
class Recordable(Protocol):
    """A task whose loss is a function of tensors alone."""

    is_recordable: bool

    def draw(self, index: Tensor, *, epoch: int, device: torch.device) -> Tensor:
        """Sample indices (B,) -> all that is random about their step."""
        ...

    def loss_of(self, inputs: Tensor, drawn: Tensor) -> Tensor:
        """Inputs and what was drawn -> mean loss (scalar)."""
        ...


def is_graphed(device: torch.device, runtime: RuntimeConfig) -> bool:
    """True if steps are replayed: by default on cuda, with one process that holds all weights."""
    if runtime.graph == "auto":
        return device.type == "cuda" and distributed.size() == 1
    return runtime.graph == "on" and device.type == "cuda"


def recordable(
    task: object, schedule: ScheduleConfig, device: torch.device, runtime: RuntimeConfig
) -> Recordable | None:
    """The task, if its steps are to be replayed."""
    is_wanted = is_graphed(device, runtime) and schedule.accumulation_steps == 1
    return task if is_wanted and isinstance(task, Recordable) and task.is_recordable else None


def prepare(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Moves learning rates onto the device, where a replay reads them; a fused AdamW has its step counts there."""
    for group in optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


Step = Callable[[Tensor, Tensor], Tensor]
"""Inputs and what was drawn -> loss of the step that was taken, detached."""


class StepGraph:
    """The steps of one training; called with the inputs of each."""

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """`step` leaves no gradient behind."""
        self.step, self.optimizer = step, optimizer
        self.num_steps = 0
        self.graph: Any = None
        self.is_refused = False
        self.stream: Any = None
        self.inputs = self.drawn = self.loss = torch.empty(0)

    def __call__(self, inputs: Tensor, drawn: Tensor) -> Tensor:
        """One step; returns its loss, which the next step overwrites."""
        self.num_steps += 1
        if self.num_steps > _EAGER_STEPS and self.graph is None and not self.is_refused:
            self._record(inputs, drawn)
        if self.graph is None:
            return self._aside(inputs, drawn)
        self.inputs.copy_(inputs)
        self.drawn.copy_(drawn)
        self.graph.replay()
        return self.loss

    def _aside(self, inputs: Tensor, drawn: Tensor) -> Tensor:
        """A step on a stream of its own, as the recording needs them before it."""
        if self.stream is None:
            self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = self.step(inputs, drawn)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _record(self, inputs: Tensor, drawn: Tensor) -> None:
        """Records a step without taking it."""
        self.inputs, self.drawn = inputs.clone(), drawn.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.loss = self.step(self.inputs, self.drawn)
        except RuntimeError as error:
            _logger.warning("steps are not replayed: %s", str(error).strip().splitlines()[0])
            self.optimizer.zero_grad(set_to_none=True)
            self.is_refused = True
        else:
            self.graph = graph
