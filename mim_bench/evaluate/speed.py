"""Speed of the pre-training step on this device, and the cost of each target.

    python -m mim_bench speed --preset tiny

Times a whole step (target, forward, backward, AdamW) on one batch of the preset's shape, targets taking
turns so that a disturbance hits all alike, and reports medians. FLOPs are those of `mim_bench.evaluate.flops`;
the peak is the best matrix product measured on this device in the same precision.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mim_bench.config import recipe
from mim_bench.config.resolve import load_config, validated
from mim_bench.config.run import RunConfig
from mim_bench.data.run_data import complete, open_data
from mim_bench.errors import UserError
from mim_bench.evaluate import flops
from mim_bench.evaluate.context import EvalContext, ProtocolResult
from mim_bench.model import masking
from mim_bench.targets.build import make_target
from mim_bench.train import backend, distributed, environment, loop, preemption
from mim_bench.train.backend import accelerate
from mim_bench.train.optimizer import adamw, decay_groups
from mim_bench.train.pretrain import PretrainTask, build_model

_WARM_UP_STEPS = 3
_CLEAR_PEAK = Path("/proc/self/clear_refs")  # Linux: writing 5 resets the peak of resident memory


@dataclass(frozen=True)
class Speed:
    """Figures of one target's step."""

    target: str
    images_per_s: float
    step_s: float
    """Median, in s."""
    target_share: float
    """Median time of the target alone over the median step."""
    peak_gb: float | None
    """cuda: allocated; Linux CPU: resident, the process's own included; else unknown."""
    flops: int
    """FLOPs of a step: matrix products, convolutions and attention, backward included."""
    peak_share: float
    """FLOP/s over the matrix peak measured here."""


def measure(
    targets: Sequence[str] | None, preset: str, overrides: Sequence[str] = (), steps: int = 20
) -> tuple[str, list[str], list[list[str]]]:
    """Times every target's step; returns title, headings and rows of a table for people."""
    speeds, peak, config = time_targets(targets, preset, overrides, steps)
    device = environment.choose_device(config.runtime.device)
    title = (
        f"{preset}, {environment.device_facts(device).name}, {backend.precision(device, config.runtime)}, batch "
        f"{part_size(config)}, matrix peak {peak / 1e12:.2f} TFLOP/s"
    )
    headings = ["target", "images/s", "step ms", "target's share", "peak GB", "GFLOP a step",
                "of matrix peak"]  # fmt: skip
    rows = [
        [
            speed.target,
            f"{speed.images_per_s:,.0f}",
            f"{1000 * speed.step_s:.1f}",
            f"{100 * speed.target_share:.1f} %",
            "-" if speed.peak_gb is None else f"{speed.peak_gb:.2f}",
            f"{speed.flops / 1e9:.1f}",
            f"{100 * speed.peak_share:.0f} %",
        ]
        for speed in speeds
    ]
    return title, headings, rows


@preemption.received_elsewhere()
def time_targets(
    targets: Sequence[str] | None, preset: str, overrides: Sequence[str], steps: int
) -> tuple[list[Speed], float, RunConfig]:
    """Speeds in the order of the targets, the matrix peak in FLOP/s, and the config they share."""
    names = list(targets or recipe.names("targets"))
    configs = {name: sized(load_config(name, preset, overrides)) for name in names}
    config = configs[names[0]]
    device = environment.choose_device(config.runtime.device)
    torch.backends.cuda.matmul.allow_tf32 = config.runtime.tf32
    peak = matrix_peak(device, config)
    steppers = {name: Stepper(configs[name], device) for name in names}
    step_times: dict[str, list[float]] = {name: [] for name in names}
    alone: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(_WARM_UP_STEPS + steps):
        for name, stepper in steppers.items():
            seconds = timed(stepper.step, device), timed(stepper.target_only, device)
            if repeat >= _WARM_UP_STEPS:
                step_times[name].append(seconds[0])
                alone[name].append(seconds[1])
    speeds = []
    for name, stepper in steppers.items():
        step_s = statistics.median(step_times[name])
        speeds.append(
            Speed(
                target=name,
                images_per_s=part_size(config) / step_s,
                step_s=step_s,
                target_share=statistics.median(alone[name]) / step_s,
                peak_gb=peak_gb(stepper.step, device),
                flops=stepper.flops,
                peak_share=stepper.flops / step_s / peak,
            )
        )
    return speeds, peak, config


def part_size(config: RunConfig) -> int:
    """Images that go through the device at once."""
    return config.pretrain.batch_size // config.pretrain.accumulation_steps


def sized(config: RunConfig) -> RunConfig:
    """Sizes from the preset where it gives them, so that no data is needed; else from the data."""
    if config.data.image_size is None:
        return complete(config, open_data(config, torch.device("cpu")))
    channels = config.data.in_chans or 3
    values = {"in_chans": channels, "mean": (0.5,) * channels, "std": (0.25,) * channels}
    data = config.data.model_dump() | values
    return validated(config.model_dump() | {"data": data})


class Stepper:
    """One target's training step on one fixed batch of noise."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        size, channels = config.data.image_size, config.data.in_chans
        assert size is not None and channels is not None
        generator = torch.Generator().manual_seed(0)
        self.target = make_target(config).to(device)
        views = (self.target.num_views,) if self.target.num_views > 1 else ()
        shape = (part_size(config), *views, channels, *size)
        self.images = torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)
        self.index = torch.arange(len(self.images))
        self.target.skip_fit()  # a fitted one costs the same
        model = build_model(config, self.target.dim).to(device)
        self.target.begin(model)
        sampler = masking.MaskSampler(config.mask, model.geometry.grid)
        self.task = PretrainTask(model, self.target, sampler, config.seed)
        groups = decay_groups(model.named_parameters(), config.pretrain.weight_decay)
        self.optimizer = adamw(groups, config.pretrain)
        self.config, self.device = config, device
        self.flops = len(self.images) * flops.step(config)
        accelerate(model, device, config.runtime)

    def step(self) -> None:
        with loop.autocast(self.device, self.config.runtime):
            loss = self.task.loss(self.images, self.index, epoch=0, step=0)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_step(1, 2)

    def target_only(self) -> None:
        with torch.no_grad(), loop.autocast(self.device, self.config.runtime):
            self.target(self.images.flatten(0, -4).float() / 255)


def timed(function: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    _wait(device)
    began = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_gb(function: Callable[[], None], device: torch.device) -> float | None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        _CLEAR_PEAK.write_text("5")
    except OSError:
        return None
    function()
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def matrix_peak(device: torch.device, config: RunConfig) -> float:
    """FLOP/s of the best square matrix product, by the way that the model's layers take."""
    is_half = backend.precision(device, config.runtime) == "bfloat16"
    sizes = (4096, 8192) if device.type == "cuda" else (1024, 2048)
    best = 0.0
    for size in sizes:
        a = torch.randn(
            size, size, device=device, dtype=torch.bfloat16 if is_half else torch.float32
        )

        layer = nn.Linear(size, size, device=device, dtype=a.dtype)
        accelerate(layer, device, config.runtime)

        def multiply(matrix: Tensor = a, layer: nn.Linear = layer) -> None:
            with torch.no_grad():
                layer(matrix)

        multiply()
        seconds = min(timed(multiply, device) for _ in range(8))
        best = max(best, 2 * size**3 / seconds)
    return best


def run(context: EvalContext) -> ProtocolResult:
    """The protocol `speed`: time, memory and FLOPs of a step, medians over the timed steps.

    MAE's Table 2 compares wall-clock times of pipeline shapes; here every step is timed on one batch of noise of
    the run's shape, target included, reading of images left out.

    Raises:
        UserError: several processes, which would time one another.
    """
    if distributed.size() > 1:
        raise UserError(
            "evaluate.protocols=speed: one device is timed; start it as a single process"
        )
    config = context.config
    stepper = Stepper(config, context.device)
    for _ in range(config.speed.warmup_steps):
        stepper.step()
    seconds = [timed(stepper.step, context.device) for _ in range(config.speed.steps)]
    alone = [timed(stepper.target_only, context.device) for _ in range(config.speed.steps)]
    step_s = statistics.median(seconds)
    peak = peak_gb(stepper.step, context.device)
    values = {
        "images_per_s": part_size(config) / step_s,
        "step_s": step_s,
        "target_s": statistics.median(alone),
        "step_flops": float(stepper.flops),
    }
    return ProtocolResult({}, values=values if peak is None else values | {"peak_gb": peak})
