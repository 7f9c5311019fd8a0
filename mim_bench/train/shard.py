"""Weights, gradients and optimiser state split over the ranks (torch's FSDP), for encoders that do not fit one.

`runtime.shard` switches it on. Every transformer block is a unit of its own; names of parameters stay, and
checkpoints hold whole tensors, so that a run may go on with another number of ranks or without sharding.
"""

from collections.abc import Iterable

from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mim_bench.config.run import RuntimeConfig
from mim_bench.train import distributed


def shard(model: nn.Module, runtime: RuntimeConfig) -> None:
    """Splits a model in place, before its optimiser is made; every rank calls it. With one rank: nothing."""
    if not runtime.shard or distributed.size() == 1:
        return
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (distributed.size(),))
    for layer in model.modules():
        if isinstance(layer, Block):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def sharded(modules: Iterable[nn.Module]) -> list[FSDPModule]:
    """Those that `shard` has split."""
    return [module for module in modules if isinstance(module, FSDPModule)]


def whole(tensor: Tensor) -> Tensor:
    """A tensor's full value on the CPU of rank 0; every rank calls it. What is not split comes as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor().detach()
    return full.cpu() if distributed.is_main() else full.new_empty(0)


def like(own: Tensor, value: Tensor) -> Tensor:
    """A full value, split as `own` is; every rank calls it with the same value."""
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
