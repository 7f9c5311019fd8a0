"""Protocols: ways to evaluate an encoder. Each is a version and one function on a `Subject`."""

from collections.abc import Callable
from dataclasses import dataclass

from mim_bench.evaluate import finetune, knn, linear, low_shot, partial, step_speed
from mim_bench.evaluate.context import Answer, Features, Subject

__all__ = ["PROTOCOLS", "Answer", "Features", "Protocol", "Subject"]


@dataclass(frozen=True)
class Protocol:
    """A protocol's version, what it depends on, and how it is run."""

    description: str
    version: int
    """Raised by every change that can move a score."""
    run: Callable[[Subject], Answer]
    sections: tuple[str, ...]
    """The sections of the config that it reads, beside the run's identity."""
    has_control: bool = False
    """Whether the encoder at its random initial weights is evaluated beside."""
    needs_encoder: bool = True
    """False if no pre-trained weight enters."""
    needs_idle: bool = False
    """True if other work on the machine would falsify its numbers."""
    needs_readout: bool = False
    """Whether its numbers belong to readouts, one of which is the declared one."""


PROTOCOLS = {
    "knn": Protocol(
        "weighted k nearest neighbours on frozen features", 1, knn.run, ("knn",),
        has_control=True, needs_readout=True,
    ),
    "linear": Protocol(
        "linear probe on frozen features (MAE: BatchNorm, LARS)", 1, linear.run, ("linear",),
        has_control=True, needs_readout=True,
    ),
    "low_shot": Protocol(
        "logistic regression on frozen features from 1 % and 10 % of the labels", 1, low_shot.run,
        ("low_shot",), has_control=True, needs_readout=True,
    ),
    "finetune": Protocol("all weights trained with labels (MAE)", 2, finetune.run, ("finetune",)),
    "scratch": Protocol(
        "the same as finetune, from random weights", 2, finetune.run_scratch, ("finetune",),
        needs_encoder=False,
    ),
    "partial": Protocol(
        "the last blocks trained with labels, the rest frozen (MAE Fig. 9)", 1, partial.run,
        ("finetune", "partial"),
    ),
    "speed": Protocol(
        "time, memory and FLOPs of the pre-training step; nothing is trained", 1, step_speed.run,
        ("speed",), needs_encoder=False, needs_idle=True,
    ),
}  # fmt: skip
