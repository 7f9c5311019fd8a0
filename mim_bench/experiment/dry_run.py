"""Remaining work of a sweep and its cost, printed before anything is run.

    python -m mim_bench sweep targets --preset imagenet --dry-run --device-tflops 180 --gpus 8
    python -m mim_bench sweep all --preset imagenet --dry-run --device-tflops 180 --gpus 64

Nothing is written and no images are needed. Hours are FLOPs over one speed, by default that of a few
pre-training steps on this device: an estimate, as reading, crops and optimiser steps are left out.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mim_bench.config.benchmark import load_benchmark
from mim_bench.errors import UserError
from mim_bench.experiment import cost
from mim_bench.experiment.forecast import ALL, Forecast, Work, forecast
from mim_bench.experiment.request import SweepRequest
from mim_bench.experiment.schedule import Job, simulate


def dry_run(
    request: SweepRequest,
    *,
    device_tflops: float | None = None,
    gpus: int | None = None,
    gpus_per_job: int = 1,
    queue_limit: int | None = None,
) -> RenderableType:
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
        return Text(f"Benchmark '{name}' has published rows only: there is nothing to run.")
    found = forecast(request)
    title = f"{Path(name).stem}, {Path(preset).stem}"
    shown = _by_benchmark if name == ALL else _by_row
    if found.longest is None:
        return Group(shown(found, title, 1.0), Text("Nothing is missing."))
    per_s = device_tflops * 1e12 if device_tflops else cost.device_speed(found.longest)
    origin = "as given" if device_tflops else "measured on this device"
    lines = [f"Hours at {_number(per_s / 1e12)} TFLOP/s a GPU, {origin}: an estimate."]
    lines += _lines(found, (gpus or 1) // gpus_per_job)
    if gpus is not None:
        lines += _schedule(found, per_s, gpus, gpus_per_job, queue_limit)
    table = shown(found, f"{title}: what is missing", per_s)
    return Group(table, *(Text(line) for line in lines))


def _check(
    device_tflops: float | None, gpus: int | None, gpus_per_job: int, queue_limit: int | None
) -> None:
    if device_tflops is not None and not device_tflops > 0:
        raise UserError(f"device_tflops={device_tflops}: allowed: above 0")
    for field, value, unset in (
        ("gpus_per_job", gpus_per_job, 1),
        ("queue_limit", queue_limit, None),
    ):
        if value != unset and gpus is None:
            raise UserError(f"{field}={value} needs gpus")
    if gpus is not None and not 1 <= gpus_per_job <= max(gpus, 1):
        raise UserError(f"gpus_per_job={gpus_per_job}: allowed: 1 to gpus={gpus}")


# ---- tables


def _by_row(found: Forecast, title: str, per_s: float) -> Table:
    """One benchmark: a line a row of its table."""
    table = _table(("row", "seeds", "done", "missing"), title)
    for row in found.rows:
        names = row.label, " ".join(map(str, row.seeds)), row.done or "-", row.missing or "-"
        table.add_row(*names, *_figures(row.work, per_s))
    return _closed(table, found, per_s, ("all", "-", "fit (estimate)"), ("", "", ""))


def _by_benchmark(found: Forecast, title: str, per_s: float) -> Table:
    """Several benchmarks: a line each."""
    headings = "benchmark", "cells", "done", "to pre-train", "shared"
    table = _table(headings, title, num_left=1)
    numbers = [
        [part.num_cells, part.num_done, part.num_new, part.num_shared] for part in found.parts
    ]
    for part, of_part in zip(found.parts, numbers, strict=True):
        table.add_row(part.name, *map(str, of_part), *_figures(part.work, per_s))
    cells, done, new, _ = map(sum, zip(*numbers, strict=True))
    return _closed(table, found, per_s, ("",) * 4, (str(cells), str(done), str(new), ""))


def _table(headings: Sequence[str], title: str, *, num_left: int | None = None) -> Table:
    """Empty, with the columns of `_figures` at the right."""
    names = headings[:num_left]
    table = Table(*names, title=title, title_style="")
    figures = "pre-training PFLOP", "evaluation PFLOP", "GPU-hours a cell", "GPU-hours"
    for heading in (*headings[len(names) :], *figures):
        table.add_column(heading, justify="right")
    return table


def _closed(
    table: Table, found: Forecast, per_s: float, of_fit: Sequence[str], of_total: Sequence[str]
) -> Table:
    """With a line for each fit, and the total."""
    for name, flops in found.fits.items():
        figures = _figures([Work(flops, 0.0)], per_s) if flops is not None else ["?", "", "", "?"]
        table.add_row(name, *of_fit, *figures[:2], "", figures[3])
    table.add_section()
    fits = [Work(flops or 0.0, 0.0) for flops in found.fits.values()]
    total = _figures([*(one for part in found.parts for one in part.work), *fits], per_s)
    table.add_row("total", *of_total, *total[:2], "", total[3])
    return table


def _figures(work: Sequence[Work], per_s: float) -> list[str]:
    """PFLOP of pre-training and of evaluation, GPU-hours of a cell (least to most) and of all."""
    hours = [cost.hours(one.total_flops, per_s) for one in work]
    each = dict.fromkeys(_number(value) for value in (min(hours), max(hours))) if hours else ["-"]
    pretrain = sum(one.pretrain_flops for one in work) / 1e15
    protocols = sum(one.protocol_flops for one in work) / 1e15
    first, second, total = (
        _number(value) if value else "-" for value in (pretrain, protocols, sum(hours))
    )
    return [first, second, " to ".join(each), total]


# ---- lines


def _lines(found: Forecast, jobs: int) -> list[str]:
    shared = "; `shared` counts those that a benchmark above needs too" * (len(found.parts) > 1)
    lines = [
        f"Pre-trainings: {found.num_pretrainings} distinct, {found.num_missing} to be made{shared}.",
        f"Storage: {_bytes(found.most_bytes(jobs))} at most while running {jobs} at a time, "
        f"{_bytes(found.kept_bytes)} kept in {found.num_files:,} files.",
    ]
    if any(flops is not None for flops in found.fits.values()):
        lines.append("A fit is estimated: fit_epochs passes at 3 x the target's own forward FLOPs.")
    if unknown := [name for name, flops in found.fits.items() if flops is None]:
        lines.append(f"Of unknown cost, taken as 0: {', '.join(unknown)}.")
    return lines


def _schedule(
    found: Forecast, per_s: float, gpus: int, gpus_per_job: int, queue_limit: int | None
) -> list[str]:
    """When all would be done, and what no number of GPUs makes shorter."""

    def timed(job: Job) -> Job:
        own = 1 if job.name in found.fits else gpus_per_job
        return Job(job.name, job.hours / per_s / own, job.needs, own)

    outcome = simulate([timed(job) for job in found.jobs], gpus, queue_limit)
    several = f", {gpus_per_job} a job and so many times as fast (a fit: 1)"
    limit = f", at most {queue_limit} jobs queued or running" if queue_limit else ""
    chain = ", then ".join(f"{job.name} ({_number(job.hours)} h)" for job in outcome.chain)
    return [
        f"On {gpus} GPU{'s' * (gpus > 1)}{several * (gpus_per_job > 1)}{limit}: "
        f"{len(found.jobs)} jobs, {_number(outcome.gpu_hours)} GPU-hours, done after "
        f"{_number(outcome.makespan_hours)} h.",
        f"Longest chain {_number(outcome.chain_hours)} h: {chain}.",
    ]


def _number(value: float) -> str:
    """Three digits, without an exponent for what is large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(value: int) -> str:
    return f"{_number(value / 1e9)} GB"
