"""Makes a model fast on a device without changing what it computes.

- cuda: torch.compile (also elsewhere with `runtime.compile=on`).
- CPU, bfloat16: attention as matrix products. torch's fused attention is 5 to 10 times slower there.
- CPU: memory that a step frees is kept for the next one. By default the C library gives large blocks back
  to the system, which has to clear them anew: 18,000 to 26,000 page faults a step, a fifth of its time.
- CPU, float32: linear layers through oneDNN. torch hands them to MKL, which on AMD processors uses half
  of the vector width; oneDNN uses all of it, forward and backward. The
  products are float32 either way and differ by rounding only.

Legend: M rows (all leading dimensions of a batch), K inputs, N outputs of a layer.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from mim_bench.config.run import RuntimeConfig
from mim_bench.cores import num_cores

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # malloc.h


def is_compiled(device: torch.device, runtime: RuntimeConfig) -> bool:
    """True if torch.compile is in force: by default on cuda only, and not where weights are split."""
    if runtime.compile == "auto":
        return device.type == "cuda" and not runtime.shard
    return runtime.compile == "on"


def accelerate(model: nn.Module, device: torch.device, runtime: RuntimeConfig) -> None:
    """Makes a model fast in place; parameters and their names stay as they are.

    A model with a `predict` has that compiled, and its target left alone, so that targets stay exact.
    """
    if device.type == "cpu":
        _keep_freed_memory()
        torch.set_num_threads(min(torch.get_num_threads(), num_cores()))
        if precision(device, runtime) == "bfloat16":
            for layer in model.modules():
                if isinstance(layer, Attention):
                    layer.fused_attn = False  # pyright: ignore[reportAttributeAccessIssue]
    if is_compiled(device, runtime):
        predict: Any = getattr(model, "predict", None)
        if predict is not None:
            # a run has one shape; graphs of runs before it would count against dynamo's limit of 8, after which
            # everything runs eager without a word
            torch._dynamo.reset()
            model.predict = torch.compile(predict, dynamic=False)  # pyright: ignore[reportArgumentType]
    elif device.type == "cpu" and precision(device, runtime) == "float32" and _has_onednn():
        for layer in model.modules():
            if type(layer) is nn.Linear:
                layer.forward = partial(_forward, layer)  # pyright: ignore[reportAttributeAccessIssue]


def precision(device: torch.device, runtime: RuntimeConfig) -> str:
    """The precision in force: `float32` or `bfloat16`."""
    if runtime.precision != "auto":
        return runtime.precision
    is_fast = device.type == "cuda" or (device.type == "cpu" and _multiplies_bfloat16())
    return "bfloat16" if is_fast else "float32"


def _multiplies_bfloat16() -> bool:
    """True if this processor has instructions for bfloat16 products: a step takes about 0.6 of the time."""
    is_supported: Callable[[], bool] | None = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return is_supported is not None and is_supported()


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """Tells glibc to serve blocks below 256 MiB from memory that it keeps; without effect elsewhere."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((_MMAP_THRESHOLD, 2**28), (_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, value)


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _forward(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """`nn.Linear.forward`, (..., K) -> (..., N)."""
    if layer.bias is None or inputs.dtype != torch.float32:
        return F.linear(inputs, layer.weight, layer.bias)
    return _Linear.apply(inputs, layer.weight, layer.bias)  # pyright: ignore[reportReturnType]


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(M, K), (N, K) -> (M, N)."""
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """A linear layer whose three products go through oneDNN."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(inputs, weight)
        rows = inputs.reshape(-1, inputs.shape[-1])
        return _product(rows, weight, bias).view(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])  # (M, N)
        before = inputs.reshape(-1, inputs.shape[-1])  # (M, K)
        of_inputs = (
            _product(rows, weight.t()).view(inputs.shape) if ctx.needs_input_grad[0] else None
        )
        # oneDNN copies the first operand into its order: the smaller one is put there
        if before.shape[1] <= rows.shape[1]:
            of_weight = _product(before.t(), rows.t()).t()
        else:
            of_weight = _product(rows.t(), before.t())
        return of_inputs, of_weight, rows.sum(0)
