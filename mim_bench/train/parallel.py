"""A task's loss as a module of what it trains: the form in which torch averages gradients over ranks.

DDP where every rank has all weights, FSDP's own hooks where they are split (`mim_bench.train.shard`), nothing with
one rank. Of a step that is cut into parts only the last one averages.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mim_bench.train import distributed
from mim_bench.train.shard import sharded

LossFunction = Callable[..., Tensor]
"""(inputs, index, *, epoch, step) -> mean loss (scalar)."""


class ParallelLoss:
    """Called like the loss function, with this rank's samples; `backward` then averages over ranks."""

    def __init__(self, loss: LossFunction, modules: Mapping[str, nn.Module]) -> None:
        self._split = sharded(modules.values())
        self._call: nn.Module = _Loss(loss, modules)
        if distributed.size() > 1 and not self._split:
            # grey images: a patch projection of one channel has two layouts that are the same in memory
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            self._call = DistributedDataParallel(
                self._call, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def __call__(self, inputs: Tensor, index: Tensor, *, epoch: int, step: int) -> Tensor:
        """This rank's mean loss."""
        return self._call(inputs, index, epoch=epoch, step=step)

    def part(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Entered for forward and backward of one part of a step."""
        for module in self._split:
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
