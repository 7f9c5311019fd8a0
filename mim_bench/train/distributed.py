"""Several processes as one: torch.distributed under `torchrun` or Slurm, and nothing at all with one process.

    torchrun --nproc-per-node 2 -m mim_bench run --target hog

A rank is one process with one device. Batches are split over ranks so that every draw (crop, mask, mixup
partner, drop path) is the one that a single process would make; rank 0 alone writes, and its errors are raised
on every rank. Gradients are averaged by DDP where every rank has all weights, by FSDP's own hooks where
`runtime.shard` splits weights, gradients and optimiser state for encoders that do not fit one device.

Legend: B global batch size, b local batch size, of one rank.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mim_bench.config.run import RuntimeConfig
from mim_bench.errors import UserError

T = TypeVar("T")
LossFunction = Callable[..., Tensor]
"""(inputs, index, *, epoch, step) -> mean loss (scalar)."""
_CPU = torch.device("cpu")
_REPORTED = "reported_by_rank_0"
_LONG_TIMEOUT = timedelta(days=30)
_long_group: dist.ProcessGroup | None = None
"""Process group for waits on rank 0 working alone: a fit may take hours. If rank 0 ends, so does the wait."""


@contextmanager
def joined(timeout_minutes: float = 30) -> Iterator[None]:
    """Inside, this process is one rank of those that the launcher started; alone it stays alone.

    Args:
        timeout_minutes: a rank that waits longer for the others gives up with an error, unless it waits for
            rank 0 working alone (`on_main`).
    """
    global _long_group
    if num_launched() == 1 or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    _long_group = dist.new_group(backend="gloo", timeout=_LONG_TIMEOUT)  # pyright: ignore[reportAssignmentType]
    yield  # after an error the others may be waiting: the exit of the process cannot hang
    any_rank(False)  # rank 0 serves the others' connections: it must not exit first
    _long_group = None
    dist.destroy_process_group()


def num_launched() -> int:
    """Number of processes that the launcher started, whether they have joined or not.

    Raises UserError for variables of a launcher that do not belong together.
    """
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdecimal() or text == "0":
        raise UserError(f"WORLD_SIZE={text}: allowed: whole numbers from 1; torchrun sets it")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if int(text) > 1 and missing:
        raise UserError(
            f"WORLD_SIZE={text} is set without {missing[0]}; torchrun sets both, `unset WORLD_SIZE` leaves one process"
        )
    return int(text)


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True on rank 0, which writes and reports."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if dist.is_initialized() else 0


def on_main(function: Callable[[], T]) -> T:
    """Calls `function` on rank 0 only; its value is returned, or its error raised, on every rank."""
    if size() == 1:
        return function()
    outcome: list[object] = [None, None]
    failure: Exception | None = None
    if is_main():
        try:
            outcome[0] = function()
        except Exception as error:
            failure = error
            outcome[1] = error if isinstance(error, UserError) else RuntimeError(repr(error))
    dist.broadcast_object_list(outcome, src=0, group=_long_group, device=_CPU)
    if failure is not None:
        raise failure
    if isinstance(outcome[1], Exception):
        setattr(outcome[1], _REPORTED, True)
        raise outcome[1]
    return outcome[0]  # pyright: ignore[reportReturnType]


def main_first(function: Callable[[], T]) -> T:
    """Calls `function` on every rank, on rank 0 before the others, which may read the file that it writes."""
    values: list[T] = []
    on_main(lambda: values.append(function()))
    return values[0] if values else function()


def is_reported(error: Exception) -> bool:
    """True if rank 0 reports this error, so that the others need not."""
    same_everywhere = num_launched() > 1 and not dist.is_initialized()  # raised before ranks differ
    return hasattr(error, _REPORTED) or (same_everywhere and os.environ.get("RANK", "0") != "0")


def is_lost_peer(error: Exception) -> bool:
    """True if the error only means that another rank has ended or kept this one waiting too long."""
    texts = ("Connection closed by peer", "Timed out waiting", "Connection reset by peer", "NCCL")
    return dist.is_initialized() and any(text in str(error) for text in texts)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def all_reduce_min(values: Tensor) -> Tensor:
    """Minimum over ranks, in place."""
    if size() > 1:
        dist.all_reduce(values, dist.ReduceOp.MIN)
    return values


def any_rank(flag: bool) -> bool:
    """True if the flag is set on any rank."""
    return bool(all_reduce_sum(torch.tensor(int(flag))).item()) if size() > 1 else flag


def local_batch(batch: Tensor) -> Tensor:
    """This rank's local batch of size b out of a global batch of size B, a multiple of the number of ranks.

    A rank with an even number takes as many from the front as from the back, mirrored: mixup pairs entry i
    with entry B - 1 - i, and so has the same partner on any number of ranks.
    """
    num_ranks, num = size(), len(batch)
    if num % num_ranks:
        raise UserError(
            f"batch_size / accumulation_steps = {num} cannot be split over {num_ranks} processes; "
            f"allowed: multiples of {num_ranks}"
        )
    if num_ranks == 1:
        return batch
    if num // num_ranks % 2:
        return batch.chunk(num_ranks)[rank()]
    half = num // num_ranks // 2
    front, back = rank() * half, num - (rank() + 1) * half
    return torch.cat([batch[front : front + half], batch[back : back + half]])


def first_index(index: Tensor) -> int:
    """First sample index of the global batch, from the local batches' indices, shape (b,)."""
    entry = index[:1].clone()
    if size() > 1:
        dist.broadcast(entry, src=0)
    return int(entry)


def local_batches(batches: Sequence[Tensor]) -> tuple[list[Tensor], int]:
    """This rank's index batches, and how many of them count.

    All ranks get equally many, so that they stay in step; those that pad a rank's list do not count.
    """
    local = list(batches[rank() :: size()])
    num_each = -(-len(batches) // size())
    return local + [batches[-1]] * (num_each - len(local)), len(local)


class _SyncDropPath(DropPath):
    """timm's, drawn for the global batch, of which this rank uses its local batch."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, ...) -> the same shape."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - float(self.drop_prob or 0.0)
        kept = local_batch(x.new_empty((len(x) * size(), *(1,) * (x.ndim - 1))).bernoulli_(keep))
        if keep > 0 and self.scale_by_keep:
            kept = kept / keep
        return x * kept


def sync_drop_path(model: nn.Module) -> None:
    """Makes every DropPath draw what one process would draw; with one process nothing changes."""
    if size() == 1:
        return
    for layer in model.modules():
        if type(layer) is DropPath:
            layer.__class__ = _SyncDropPath


def shard(model: nn.Module, runtime: RuntimeConfig) -> None:
    """Splits a model over the ranks in place (FSDP), before its optimiser is built; every rank calls it.

    Every transformer block is a unit of its own; names of parameters stay, and checkpoints hold full tensors,
    so that a run may go on with another number of ranks or without sharding. With one rank nothing changes.
    """
    if not runtime.shard or size() == 1:
        return
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (size(),))
    for layer in model.modules():
        if isinstance(layer, Block):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if hasattr(model, "compare"):  # what else is called than `forward`
        register_fsdp_forward_method(model, "compare")


def sharded_modules(modules: Iterable[nn.Module]) -> list[FSDPModule]:
    """The modules that `shard` has split."""
    return [module for module in modules if isinstance(module, FSDPModule)]


def full_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor's full value on the CPU of rank 0; every rank calls it. Others are returned as they are."""
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor().detach()
    return full.cpu() if is_main() else full.new_empty(0)


@torch.no_grad()
def copy_whole(model: nn.Module, copy: nn.Module) -> None:
    """Copies the parameters of a model that may be sharded into one that is not; every rank calls it."""
    for parameter, copied in zip(model.parameters(), copy.parameters(), strict=True):
        copied.copy_(parameter.full_tensor() if isinstance(parameter, DTensor) else parameter)


def shard_like(tensor: Tensor, value: Tensor) -> Tensor:
    """A full value, sharded as `tensor` is; every rank calls it with the same value."""
    if not isinstance(tensor, DTensor):
        return value
    return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)


class ParallelLoss:
    """A loss as a module of what it trains, called with local batches; `backward` averages gradients over ranks."""

    def __init__(self, loss: LossFunction, modules: Mapping[str, nn.Module]) -> None:
        self._sharded = sharded_modules(modules.values())
        self._call: nn.Module = _Loss(loss, modules)
        if size() > 1 and not self._sharded:
            # grey images: a patch projection of one channel has two layouts that are the same in memory
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            self._call = DistributedDataParallel(
                self._call, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def __call__(self, inputs: Tensor, index: Tensor, *, epoch: int, step: int) -> Tensor:
        """This rank's mean loss."""
        return self._call(inputs, index, epoch=epoch, step=step)

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Context of forward and backward of one micro-batch; only the last one of a step averages gradients."""
        for module in self._sharded:
            module.set_requires_gradient_sync(is_last)
        if is_last or not isinstance(self._call, DistributedDataParallel):
            return nullcontext()
        return self._call.no_sync()


class _Loss(nn.Module):
    def __init__(self, loss: LossFunction, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.loss, self.trained = loss, nn.ModuleDict(modules)

    def forward(self, inputs: Tensor, index: Tensor, *, epoch: int, step: int) -> Tensor:
        return self.loss(inputs, index, epoch=epoch, step=step)
