"""Protocols: ways to evaluate an encoder. Each is a version and one function on a `Subject`."""

from collections.abc import Callable
from dataclasses import dataclass

from mim_bench.protocols import finetune, knn, linear
from mim_bench.protocols.subject import Answer, Features, Subject

__all__ = ["PROTOCOLS", "Answer", "Features", "Protocol", "Subject"]


@dataclass(frozen=True)
class Protocol:
    """A protocol's version, what it depends on, and how it is run."""

    description: str
    version: int
    """Raised by every change that can move a score."""
    run: Callable[[Subject], Answer]
    section: str
    """The section of the config that it reads."""
    has_control: bool
    """Whether the encoder at its random initial weights is evaluated beside."""
    needs_encoder: bool = True


PROTOCOLS = {
    "knn": Protocol(
        "weighted k nearest neighbours on frozen features", 1, knn.run, "knn", has_control=True
    ),
    "linear": Protocol(
        "linear probe on frozen features (MAE: BatchNorm, LARS)", 1, linear.run, "linear", has_control=True
    ),
    "finetune": Protocol(
        "all weights trained with labels (MAE)", 1, finetune.run, "finetune", has_control=False
    ),
    "scratch": Protocol(
        "the same as finetune, from random weights", 1, finetune.run_scratch, "finetune",
        has_control=False, needs_encoder=False,
    ),
}  # fmt: skip
