"""Parts of teachers that follow the student: their rate, their weights, sums over the ranks of a run."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def cosine(first: float, last: float, progress: float) -> float:
    """Value that moves from `first` at 0 to `last` at 1 along half a cosine, then stays."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, tau: float) -> None:
    """Moves the teacher's weights towards the student's, in the same order, by 1 - tau."""
    parameters: list[Tensor] = [*teacher.parameters()]
    torch._foreach_lerp_(parameters, [*student.parameters()], 1 - tau)


def sum_over_ranks(total: Tensor) -> Tensor:
    """Sum of a tensor over the ranks of a run, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total


def gather_over_ranks(values: Tensor) -> tuple[Tensor, int]:
    """(B, D) of each process of a run, without gradient -> all of them (R * B, D), and the row of the own first."""
    if not (dist.is_available() and dist.is_initialized()):
        return values, 0
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts), dist.get_rank() * len(values)


def exact(like: Tensor) -> AbstractContextManager[Any]:
    """Context in which products are those of float32, whatever the model runs in."""
    if like.is_meta:  # where FLOPs are counted, which knows no autocast
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)
