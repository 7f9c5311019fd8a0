"""Several processes as one: torch.distributed under `torchrun` or Slurm, and nothing at all with one process.

    torchrun --nproc-per-node 2 -m mim_bench run --target hog

A rank is one process with one device. Batches are shared out so that every draw (crop, mask, mixup partner,
drop path) is the one that a single process would make; rank 0 alone writes, and its errors are everybody's.

Legend: B batch over all ranks, b the part of it that a rank has.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from timm.layers import DropPath
from torch import Tensor, nn

from mim_bench.errors import UserError

T = TypeVar("T")
_CPU = torch.device("cpu")
_TOLD = "told_by_rank_0"
_PATIENCE = timedelta(days=30)
_patient: dist.ProcessGroup | None = None
"""For waits on what rank 0 does alone: a fit may take hours. If rank 0 ends, so does the wait."""


@contextmanager
def joined(timeout_minutes: float = 30) -> Iterator[None]:
    """Inside, this process is one rank of those that the launcher started; alone it stays alone.

    Args:
        timeout_minutes: a rank that waits longer for the others gives up with an error, unless it waits for
            what rank 0 does alone (`from_main`).
    """
    global _patient
    if num_launched() == 1 or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    _patient = dist.new_group(backend="gloo", timeout=_PATIENCE)  # pyright: ignore[reportAssignmentType]
    yield  # after an error the others may be waiting: leaving by the exit of the process cannot hang
    any_rank(False)  # rank 0 serves the others' connections: it must not leave first
    _patient = None
    dist.destroy_process_group()


def num_launched() -> int:
    """Number of processes that the launcher started, whether they have joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the rank that writes and speaks."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if dist.is_initialized() else 0


def from_main(function: Callable[[], T]) -> T:
    """What `function` returns on rank 0, on every rank; nobody else calls it. Its error is raised everywhere."""
    if size() == 1:
        return function()
    answer: list[object] = [None, None]
    failure: Exception | None = None
    if is_main():
        try:
            answer[0] = function()
        except Exception as error:
            failure = error
            answer[1] = error if isinstance(error, UserError) else RuntimeError(repr(error))
    dist.broadcast_object_list(answer, src=0, group=_patient, device=_CPU)
    if failure is not None:
        raise failure
    if isinstance(answer[1], Exception):
        setattr(answer[1], _TOLD, True)
        raise answer[1]
    return answer[0]  # pyright: ignore[reportReturnType]


def main_first(function: Callable[[], T]) -> T:
    """Calls it on every rank, on rank 0 before the others: for what leaves a file that they then read."""
    made: list[T] = []
    from_main(lambda: made.append(function()))
    return made[0] if made else function()


def is_told(error: Exception) -> bool:
    """Whether rank 0 tells of this error, so that the others need not."""
    same_everywhere = num_launched() > 1 and not dist.is_initialized()  # raised before ranks differ
    return hasattr(error, _TOLD) or (same_everywhere and os.environ.get("RANK", "0") != "0")


def is_lost_peer(error: Exception) -> bool:
    """Whether it only says that another rank has ended or kept this one waiting too long."""
    known = ("Connection closed by peer", "Timed out waiting", "Connection reset by peer", "NCCL")
    return dist.is_initialized() and any(text in str(error) for text in known)


def add_up(values: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def least(values: Tensor) -> Tensor:
    """The least over ranks, in place."""
    if size() > 1:
        dist.all_reduce(values, dist.ReduceOp.MIN)
    return values


def any_rank(flag: bool) -> bool:
    """Whether it is true on any rank."""
    return bool(add_up(torch.tensor(int(flag))).item()) if size() > 1 else flag


def share(batch: Tensor) -> Tensor:
    """This rank's b of a batch's B entries.

    A rank with an even number takes as many from the front as from the back, mirrored: mixup pairs entry i
    with entry B - 1 - i, and so finds the same partner on any number of ranks.

    Raises:
        UserError: the batch cannot be cut into equal parts.
    """
    num_ranks, num = size(), len(batch)
    if num % num_ranks:
        raise UserError(
            f"batch_size / accumulation_steps = {num} cannot be shared by {num_ranks} processes; "
            f"allowed: multiples of {num_ranks}"
        )
    if num_ranks == 1:
        return batch
    if num // num_ranks % 2:
        return batch.chunk(num_ranks)[rank()]
    half = num // num_ranks // 2
    front, back = rank() * half, num - (rank() + 1) * half
    return torch.cat([batch[front : front + half], batch[back : back + half]])


def first(index: Tensor) -> int:
    """The first sample index of the batch over all ranks, of which this rank has (b,) `index`."""
    entry = index[:1].clone()
    if size() > 1:
        dist.broadcast(entry, src=0)
    return int(entry)


def split_batches(batches: Sequence[Tensor]) -> tuple[list[Tensor], int]:
    """This rank's index batches, and how many of them count.

    All ranks get equally many, so that they stay in step; what was added to make that so does not count.
    """
    own = list(batches[rank() :: size()])
    num_each = -(-len(batches) // size())
    return own + [batches[-1]] * (num_each - len(own)), len(own)


class _DropPath(DropPath):
    """timm's, drawn for the batch over all ranks, of which this rank's share is taken."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, ...) -> the same shape."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - float(self.drop_prob or 0.0)
        whole = x.new_empty((len(x) * size(), *(1,) * (x.ndim - 1))).bernoulli_(keep)
        kept = share(whole)
        if keep > 0 and self.scale_by_keep:
            kept = kept / keep
        return x * kept


def share_drop_path(model: nn.Module) -> None:
    """Has every DropPath draw what one process would draw; with one process nothing changes."""
    if size() == 1:
        return
    for layer in model.modules():
        if type(layer) is DropPath:
            layer.__class__ = _DropPath
