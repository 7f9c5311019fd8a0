"""What a sweep has still to do and what that costs, told before anything is run.

    python -m mim_bench sweep targets --preset imagenet --dry-run --device-tflops 180 --gpus 8

Nothing is written and no images are needed. Hours are FLOPs over one speed, by default that of a few
pre-training steps on this device: an estimate, as reading, crops and optimiser steps are left out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mim_bench import cost
from mim_bench.benchmark import load_benchmark
from mim_bench.config import RunConfig, digest
from mim_bench.cost import Cost
from mim_bench.error import UserError
from mim_bench.experiment import needs_pretraining
from mim_bench.resolve import flatten
from mim_bench.simulate import Job, Outcome, simulate
from mim_bench.sweep import Task, plan


@dataclass(frozen=True)
class Row:
    """The cells of one label, all seeds."""

    label: str
    seeds: tuple[int, ...]
    done: str
    """Protocols, each with its seeds where it is not all of them."""
    missing: str
    pretrain_flops: float
    """Of what is missing; a pre-training that several cells share is in the first alone."""
    protocol_flops: float


@dataclass(frozen=True)
class Forecast:
    """What a sweep has still to do."""

    rows: tuple[Row, ...]
    fits: dict[str, float | None]
    """Job that fits a target before its missing pre-trainings -> rough FLOPs; unset: unknown."""
    jobs: tuple[Job, ...]
    """Fits, then seed by seed pre-trainings and evaluations, their hours at 1 FLOP/s."""
    num_pretrainings: int
    """Distinct ones that the benchmark needs."""
    num_missing: int
    """Those of them that are still to be made."""
    kept_bytes: int
    """Weights that the missing runs leave."""
    growing_bytes: tuple[int, ...]
    """What each missing run takes while it is under way beyond what it leaves, largest first."""
    num_files: int
    """Files that the missing runs leave in their folders."""
    longest: RunConfig | None
    """The missing run with most to do, which a device's speed is measured on."""

    @property
    def total_flops(self) -> float:
        """Of all that is missing, as far as it is known."""
        runs = sum(row.pretrain_flops + row.protocol_flops for row in self.rows)
        return runs + sum(flops or 0.0 for flops in self.fits.values())

    def most_bytes(self, jobs: int = 1) -> int:
        """The most there is at any time, with so many runs at a time."""
        return self.kept_bytes + sum(self.growing_bytes[:jobs])


def forecast(
    name: str,
    preset: str,
    *,
    results: Path,
    overrides: Sequence[str] = (),
    protocols: Sequence[str] | None = None,
    out: Path | None = None,
) -> Forecast:
    """What is missing of a benchmark's runs.

    Args:
        protocols: of the benchmark's, only these; by default all.
        out: folder of run folders; a pre-training that is finished there is not counted again.

    Raises:
        UserError: no runs belong to the benchmark, or one of its records is damaged.
    """
    tasks = plan(
        name, preset, results=results, overrides=overrides, protocols=protocols, copy=False
    )
    todo = [task for task in tasks if task.missing]
    there = _finished(out, [task.cell.config for task in todo])
    pretrainings: dict[str, str] = {}  # hash of a run -> name of its job
    fits: dict[str, tuple[str, float | None]] = {}
    flops: dict[int, tuple[float, float]] = {}
    costs: dict[str, Cost] = {}  # of a run's folder
    jobs: list[tuple[int, int, Job]] = []
    for task in todo:
        config, key = task.config, task.cell.config.hash
        title = f"{task.cell.label}, seed {config.seed}"
        pretrains = needs_pretraining(config) and key not in there
        found = cost.estimate(config)
        costs[key] = max(found, costs.get(key, found), key=lambda one: one.total_flops)
        first, own = 0.0, sum(found.protocol_flops.values())
        if pretrains and key not in pretrainings:
            first, pretrainings[key] = found.pretrain_flops, f"pre-train {title}"
            job = Job(pretrainings[key], cost.hours(first, 1), _fit(config, fits))
            jobs.append((config.seed, 1, job))
        flops[id(task)] = first, own
        needs = (pretrainings[key],) if pretrains else ()
        jobs.append((config.seed, 2, Job(f"evaluate {title}", cost.hours(own, 1), needs)))
    jobs += [(-1, 0, Job(name, cost.hours(value or 0.0, 1))) for name, value in fits.values()]
    growing = (one.storage_bytes - one.kept_bytes for one in costs.values())
    return Forecast(
        rows=_rows(tasks, flops),
        fits=dict(fits.values()),
        jobs=tuple(job for *_, job in sorted(jobs, key=lambda one: one[:2])),
        num_pretrainings=len(
            {t.cell.config.hash for t in tasks if needs_pretraining(t.cell.config)}
        ),
        num_missing=len(pretrainings),
        kept_bytes=sum(one.kept_bytes for one in costs.values()),
        growing_bytes=tuple(sorted(growing, reverse=True)),
        num_files=sum(one.num_files for one in costs.values()),
        longest=max(todo, key=lambda task: sum(flops[id(task)])).config if todo else None,
    )


def _fit(config: RunConfig, known: dict[str, tuple[str, float | None]]) -> tuple[str, ...]:
    """Name of the job that fits the run's target, if one must."""
    # what `fit.fit_key` hashes, without the fingerprint: a sweep has one data set
    parts = config.model_dump(mode="json", include={"target", "data", "augment"})
    key = digest([parts, config.model.patch_size])
    if key not in known:
        flops = cost.fit_flops(config)
        if flops == 0:
            return ()
        name = f"fit {config.target.name}"
        number = 1 + sum(other.startswith(name) for other, _ in known.values())
        known[key] = (name if number == 1 else f"{name} {number}"), flops
    return (known[key][0],)


def _finished(out: Path | None, configs: Sequence[RunConfig]) -> set[str]:
    """Hashes of the runs whose pre-training is finished in `out`; what a config leaves to the data
    is whatever the run found."""
    if out is None:
        return set()
    made = [
        flatten(json.loads((path.parent / "config.json").read_text()))
        for path in sorted(out.glob("*/pretrain.json"))
        if (path.parent / "config.json").is_file()
    ]
    found = set()
    for config in configs:
        wanted = {k: v for k, v in flatten(config.identity()).items() if v is not None}
        if any(all(k in one and one[k] == v for k, v in wanted.items()) for one in made):
            found.add(config.hash)
    return found


def _rows(tasks: Sequence[Task], flops: dict[int, tuple[float, float]]) -> tuple[Row, ...]:
    labels: dict[str, list[Task]] = {}
    for task in tasks:
        labels.setdefault(task.cell.label, []).append(task)
    return tuple(
        Row(
            label=label,
            seeds=tuple(task.cell.config.seed for task in group),
            done=_protocols(group, missing=False),
            missing=_protocols(group, missing=True),
            pretrain_flops=sum(flops[id(t)][0] for t in group if id(t) in flops),
            protocol_flops=sum(flops[id(t)][1] for t in group if id(t) in flops),
        )
        for label, group in labels.items()
    )


def _protocols(tasks: Sequence[Task], *, missing: bool) -> str:
    """`knn, finetune (seeds 1 2)`: what is missing, or what is done."""
    seeds: dict[str, list[int]] = {}  # in the order of the protocols
    for task in tasks:
        for protocol in task.cell.config.evaluate.protocols:
            found = seeds.setdefault(protocol, [])
            if (protocol in task.missing) == missing:
                found.append(task.cell.config.seed)

    def shown(name: str, found: list[int]) -> str:
        if len(found) == len(tasks):
            return name
        return f"{name} (seed{'s' * (len(found) > 1)} {' '.join(map(str, found))})"

    return ", ".join(shown(name, found) for name, found in seeds.items() if found)


# ---- for people


def dry_run(
    name: str,
    preset: str,
    *,
    results: Path,
    overrides: Sequence[str] = (),
    protocols: Sequence[str] | None = None,
    out: Path | None = None,
    device_tflops: float | None = None,
    gpus: int | None = None,
    queue_limit: int | None = None,
) -> RenderableType:
    """What a sweep would do, as a table and lines to print.

    Args:
        protocols: of the benchmark's, only these; by default all.
        out: folder of run folders; a pre-training that is finished there is not counted again.
        device_tflops: TFLOP/s that one device sustains in training; by default measured on this one.
        gpus: devices to spread the jobs over.
        queue_limit: jobs queued and running together at most, as a cluster may have it.

    Raises:
        UserError: an unknown name, a number that is not allowed, or a damaged record.
    """
    if device_tflops is not None and not device_tflops > 0:
        raise UserError(f"device_tflops={device_tflops}: allowed: above 0")
    if queue_limit is not None and gpus is None:
        raise UserError(f"queue_limit={queue_limit} needs gpus")
    if load_benchmark(name).division == "published":
        return Text(f"Benchmark '{name}' has published rows only: there is nothing to run.")
    found = forecast(
        name, preset, results=results, overrides=overrides, protocols=protocols, out=out
    )
    title = f"{Path(name).stem}, {Path(preset).stem}"
    if found.longest is None:
        return Group(_table(found, title, 1.0), Text("Nothing is missing."))
    per_s = device_tflops * 1e12 if device_tflops else cost.device_speed(found.longest)
    origin = "as given" if device_tflops else "measured on this device"
    lines = [f"Hours at {_number(per_s / 1e12)} TFLOP/s, {origin}: an estimate."]
    lines += _lines(found, gpus or 1)
    if gpus is not None:
        timed = [Job(job.name, job.hours / per_s, job.needs) for job in found.jobs]
        limit = f", at most {queue_limit} jobs queued or running" if queue_limit else ""
        heading = f"On {gpus} GPU{'s' * (gpus > 1)}{limit}: {len(timed)} jobs"
        lines += _outcome_lines(heading, simulate(timed, gpus, queue_limit))
    table = _table(found, f"{title}: what is missing", per_s)
    return Group(table, *(Text(line) for line in lines))


def _table(found: Forecast, title: str, per_s: float) -> Table:
    table = Table("row", "seeds", "done", "missing", title=title, title_style="")
    for heading in ("pre-training PFLOP", "evaluation PFLOP", "hours"):
        table.add_column(heading, justify="right")

    def add(names: Sequence[str], pretrain: float | None, protocols: float) -> None:
        figures = "?", "", "?"
        if pretrain is not None:
            values = pretrain / 1e15, protocols / 1e15, cost.hours(pretrain + protocols, per_s)
            figures = tuple(_number(value) if value else "-" for value in values)
        table.add_row(*names, *figures)

    for row in found.rows:
        names = row.label, " ".join(map(str, row.seeds)), row.done or "-", row.missing or "-"
        add(names, row.pretrain_flops, row.protocol_flops)
    for name, flops in found.fits.items():
        add((name, "all", "-", "fit (estimate)"), flops, 0.0)
    table.add_section()
    protocols = sum(row.protocol_flops for row in found.rows)
    add(("total", "", "", ""), found.total_flops - protocols, protocols)
    return table


def _lines(found: Forecast, jobs: int) -> list[str]:
    lines = [
        f"Pre-trainings: {found.num_pretrainings} distinct, {found.num_missing} to be made.",
        f"Storage: {_bytes(found.most_bytes(jobs))} at most while running {jobs} at a time, "
        f"{_bytes(found.kept_bytes)} kept in {found.num_files} files.",
    ]
    if any(flops is not None for flops in found.fits.values()):
        lines.append("A fit is estimated: fit_epochs passes at 3 x the target's own forward FLOPs.")
    if unknown := [name for name, flops in found.fits.items() if flops is None]:
        lines.append(f"Of unknown cost, taken as 0: {', '.join(unknown)}.")
    return lines


def _outcome_lines(heading: str, outcome: Outcome) -> list[str]:
    chain = ", then ".join(f"{job.name} ({_number(job.hours)} h)" for job in outcome.chain)
    return [
        f"{heading}, {_number(outcome.gpu_hours)} GPU-hours, done after "
        f"{_number(outcome.makespan_hours)} h.",
        f"Longest chain {_number(outcome.chain_hours)} h: {chain}.",
    ]


def _number(value: float) -> str:
    """Three digits, without an exponent for what is large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(value: int) -> str:
    return f"{_number(value / 1e9)} GB"
