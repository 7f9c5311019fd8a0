"""Remaining work of a sweep and its cost, printed before anything is run.

    python -m mim_bench sweep targets --preset imagenet --dry-run --device-tflops 180 --gpus 8
    python -m mim_bench sweep all --preset imagenet --dry-run --device-tflops 180 --gpus 64

Nothing is written and no images are needed. Hours are FLOPs over one speed, by default that of a few
pre-training steps on this device: an estimate, as reading, crops and optimiser steps are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mim_bench.config.benchmark import load_benchmark
from mim_bench.errors import UserError
from mim_bench.experiment import cost
from mim_bench.experiment.forecast import ALL, Forecast, Work, forecast
from mim_bench.experiment.request import SweepRequest
from mim_bench.experiment.schedule import Job, simulate
from mim_bench.train import environment

_MOST_CPU_HOURS = 1000
"""An estimate above it is of a device that nobody would run it on."""


@dataclass(frozen=True)
class DryRun:
    """Text of a dry run, to be printed."""

    title: str
    headings: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Rate:
    """Conversion of FLOPs to times: on a GPU, on this CPU, or none."""

    per_s: float | None
    unit: str
    """Unit for a heading; empty where there are no times."""

    def times(self, work: Sequence[Work]) -> list[str]:
        """Time of a cell, least to most, and of all."""
        if self.per_s is None:
            return []
        scale = 60 if self.unit == "minutes" else 1
        times = [scale * cost.hours(item.total_flops, self.per_s) for item in work]
        if not times:
            return ["-", "0"]
        ends = dict.fromkeys(_number(value) for value in (min(times), max(times)))
        return [" to ".join(ends), _number(sum(times))]


def dry_run(
    request: SweepRequest,
    *,
    device_tflops: float | None = None,
    gpus: int | None = None,
    gpus_per_job: int = 1,
    queue_limit: int | None = None,
) -> DryRun:
    """Remaining work of a sweep, as a table and lines to print.

    Args:
        request: its name is a benchmark, or `all`: every one that has runs, common runs counted once.
        device_tflops: TFLOP/s that one device sustains in training; by default measured on this one.
        gpus: devices to spread the jobs over.
        gpus_per_job: devices that each pre-training and each evaluation takes, its time divided by
            them; a fit takes one.
        queue_limit: jobs queued and running together at most, as a cluster may have it.
    """
    _check(device_tflops, gpus, gpus_per_job, queue_limit)
    name, preset = request.name, request.preset
    if name != ALL and load_benchmark(name).division == "published":
        return DryRun(f"Benchmark '{name}' has published rows only: there is nothing to run.")
    expected = forecast(request)
    title = f"{Path(name).stem}, {Path(preset).stem}"
    grid_of = _by_benchmark if name == ALL else _by_row
    if expected.longest is None:
        return DryRun(title, *grid_of(expected, _Rate(None, "")), ["Nothing is missing."])
    rate, line = _rate(expected, device_tflops)
    lines = [line, *_lines(expected, (gpus or 1) // gpus_per_job)]
    if gpus is not None and rate.per_s is not None:
        lines += _schedule(expected, rate.per_s, gpus, gpus_per_job, queue_limit)
    return DryRun(f"{title}: what is missing", *grid_of(expected, rate), lines)


def _rate(expected: Forecast, device_tflops: float | None) -> tuple[_Rate, str]:
    if device_tflops:
        as_given = f"{_number(device_tflops)} TFLOP/s a GPU, as given"
        return _Rate(device_tflops * 1e12, "GPU-hours"), f"Hours at {as_given}: an estimate."
    assert expected.longest is not None
    per_s = cost.device_speed(expected.longest)
    measured = f"{_number(per_s / 1e12)} TFLOP/s, measured on this"
    if environment.choose_device(expected.longest.runtime.device).type != "cpu":
        return _Rate(per_s, "GPU-hours"), f"Hours at {measured} device: an estimate."
    if cost.hours(expected.total_flops, per_s) > _MOST_CPU_HOURS:
        return _Rate(
            None, ""
        ), "This CPU would take years; --device-tflops 150 estimates for such a GPU."
    return _Rate(per_s, "minutes"), f"Minutes at {measured} CPU: an estimate."


def _check(
    device_tflops: float | None, gpus: int | None, gpus_per_job: int, queue_limit: int | None
) -> None:
    if device_tflops is not None and not device_tflops > 0:
        raise UserError(f"device_tflops={device_tflops}: allowed: above 0")
    for name, value, unset in (
        ("gpus_per_job", gpus_per_job, 1),
        ("queue_limit", queue_limit, None),
    ):
        if value != unset and gpus is None:
            raise UserError(f"{name}={value} needs gpus")
    if gpus is not None and not 1 <= gpus_per_job <= max(gpus, 1):
        raise UserError(f"gpus_per_job={gpus_per_job}: allowed: 1 to gpus={gpus}")


# ---- tables


def _by_row(expected: Forecast, rate: _Rate) -> tuple[list[str], list[list[str]]]:
    """One benchmark: a line a row of its table."""
    rows = [
        [row.label, " ".join(map(str, row.seeds)), row.done or "-", row.missing or "-",
         *_numbers(row.work, rate)]
        for row in expected.rows
    ]  # fmt: skip
    fit, total = ["all", "-", "fit (estimate)"], ["", "", ""]
    return _closed(["row", "seeds", "done", "missing"], rows, expected, rate, fit, total)


def _by_benchmark(expected: Forecast, rate: _Rate) -> tuple[list[str], list[list[str]]]:
    """Several benchmarks: a line each."""
    numbers = [
        [each.num_cells, each.num_done, each.num_new, each.num_shared]
        for each in expected.benchmarks
    ]
    rows = [
        [benchmark.name, *map(str, of_benchmark), *_numbers(benchmark.work, rate)]
        for benchmark, of_benchmark in zip(expected.benchmarks, numbers, strict=True)
    ]
    total = [str(sum(column)) for column in list(zip(*numbers, strict=True))[:3]]
    headings = ["benchmark", "cells", "done", "to pre-train", "shared"]
    return _closed(headings, rows, expected, rate, [""] * 4, [*total, ""])


def _closed(
    headings: list[str],
    rows: list[list[str]],
    expected: Forecast,
    rate: _Rate,
    of_fit: list[str],
    of_total: list[str],
) -> tuple[list[str], list[list[str]]]:
    """Rows, closed with a line for each fit and the total."""
    for name, flops in expected.fits.items():
        numbers = _numbers([Work(flops or 0.0, 0.0)], rate)
        rows.append([name, *of_fit, *(numbers if flops is not None else ["?"] * len(numbers))])
    fits = [Work(flops or 0.0, 0.0) for flops in expected.fits.values()]
    work = [item for benchmark in expected.benchmarks for item in benchmark.work]
    rows.append(["total", *of_total, *_numbers([*work, *fits], rate)])
    times = [f"{rate.unit} a cell", rate.unit] if rate.unit else []
    return [*headings, "pre-training PFLOP", "evaluation PFLOP", *times], rows


def _numbers(work: Sequence[Work], rate: _Rate) -> list[str]:
    """PFLOP of pre-training and of evaluation, and times."""
    pretrain = sum(item.pretrain_flops for item in work) / 1e15
    protocols = sum(item.protocol_flops for item in work) / 1e15
    return [
        *(_number(value) if value else "-" for value in (pretrain, protocols)),
        *rate.times(work),
    ]


# ---- lines


def _lines(expected: Forecast, jobs: int) -> list[str]:
    shared = "; `shared` counts those that a benchmark above needs too" * (
        len(expected.benchmarks) > 1
    )
    lines = [
        f"Pre-trainings: {expected.num_pretrainings} distinct, {expected.num_missing} to be made{shared}.",
        f"Storage: {_bytes(expected.most_bytes(jobs))} at most while running {jobs} at a time, "
        f"{_bytes(expected.kept_bytes)} kept in {expected.num_files:,} files.",
    ]
    if any(flops is not None for flops in expected.fits.values()):
        lines.append("A fit is estimated: fit_epochs passes at 3 x the target's own forward FLOPs.")
    if unknown := [name for name, flops in expected.fits.items() if flops is None]:
        lines.append(f"Of unknown cost, taken as 0: {', '.join(unknown)}.")
    return lines


def _schedule(
    expected: Forecast, per_s: float, gpus: int, gpus_per_job: int, queue_limit: int | None
) -> list[str]:
    """Lines on when all jobs would be done, and on the longest chain, which no number of GPUs shortens."""

    def timed(job: Job) -> Job:
        num_gpus = 1 if job.name in expected.fits else gpus_per_job
        return Job(job.name, job.hours / per_s / num_gpus, job.needs, num_gpus)

    outcome = simulate([timed(job) for job in expected.jobs], gpus, queue_limit)
    job_note = f", {gpus_per_job} a job and so many times as fast (a fit: 1)"
    limit = f", at most {queue_limit} jobs queued or running" if queue_limit else ""
    chain = ", then ".join(f"{job.name} ({_number(job.hours)} h)" for job in outcome.chain)
    return [
        f"On {gpus} GPU{'s' * (gpus > 1)}{job_note * (gpus_per_job > 1)}{limit}: "
        f"{len(expected.jobs)} jobs, {_number(outcome.gpu_hours)} GPU-hours, done after "
        f"{_number(outcome.makespan_hours)} h.",
        f"Longest chain {_number(outcome.chain_hours)} h: {chain}.",
    ]


def _number(value: float) -> str:
    """Three digits, without an exponent for what is large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(value: int) -> str:
    return f"{_number(value / 1e9)} GB"
