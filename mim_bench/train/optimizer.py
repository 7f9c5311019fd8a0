"""Learning-rate schedule, parameter groups and LARS.

The learning rate is a pure function of the step (MAE, util/lr_sched.py: linear warm-up from 0, then half
a cosine). AdamW comes from torch, layer decay from timm.

LARS (You et al. 2017) is ours because timm's puts an epsilon and the weight decay into the trust ratio
and cannot leave 1-D parameters unscaled per group the way MAE's probe does; numbers in tests/golden.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mim_bench.config.evaluation import AttentiveConfig, FinetuneConfig
from mim_bench.config.schedule import PretrainConfig, ScheduleConfig


def learning_rate(schedule: ScheduleConfig, epoch: float) -> float:
    """The learning rate at a fractional epoch: `step / steps_per_epoch`."""
    if epoch < schedule.warmup_epochs:
        return schedule.lr * epoch / schedule.warmup_epochs
    length = schedule.epochs - schedule.warmup_epochs
    progress = min(1.0, (epoch - schedule.warmup_epochs) / length) if length > 0 else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return schedule.min_lr + (schedule.lr - schedule.min_lr) * cosine


def adamw(
    groups: list[dict[str, Any]], schedule: PretrainConfig | AttentiveConfig | FinetuneConfig
) -> torch.optim.Optimizer:
    """torch's AdamW over parameter groups, fused where the device has that."""
    first = next(parameter for group in groups for parameter in group["params"])
    fused = first.device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, lr=schedule.lr, betas=schedule.betas, fused=fused)


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """MAE's pre-training groups: no decay for 1-D parameters; class and mask token are decayed."""
    decayed, undecayed = [], []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            is_plain = parameter.ndim <= 1 or name.endswith(".bias")
            (undecayed if is_plain else decayed).append(parameter)
    return [
        {"params": undecayed, "weight_decay": 0.0, "lr_scale": 1.0},
        {"params": decayed, "weight_decay": weight_decay, "lr_scale": 1.0},
    ]


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling as MAE's linear probe uses it.

    Tensors with more than one dimension: (gradient + weight decay * p) times trust * |p| / |that| (1 if
    either norm is 0). 1-D tensors: the plain gradient. The learning rate stays outside the momentum.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; parameters without a gradient are left alone."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update + group["weight_decay"] * parameter
                    update = update * _trust_ratio(parameter, update, group["trust_coefficient"])
                state = self.state[parameter]
                if "mu" not in state:
                    state["mu"] = torch.zeros_like(parameter)
                state["mu"].mul_(group["momentum"]).add_(update)
                parameter.add_(state["mu"], alpha=-group["lr"])


def _trust_ratio(parameter: Tensor, update: Tensor, trust_coefficient: float) -> Tensor:
    parameter_norm, update_norm = parameter.norm(), update.norm()
    ratio = trust_coefficient * parameter_norm / update_norm
    usable = (parameter_norm > 0) & (update_norm > 0)
    return torch.where(usable, ratio, torch.ones_like(ratio))
