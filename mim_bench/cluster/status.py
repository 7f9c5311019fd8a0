"""State of a sweep on a cluster, cell by cell, and its end before time.

python -m mim_bench status targets            # add --json for scripts
python -m mim_bench cancel targets
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mim_bench.cluster import slurm, state
from mim_bench.cluster.job import Job
from mim_bench.cluster.ledger import Ledger
from mim_bench.cluster.state import BenchmarkJobs, State
from mim_bench.errors import UserError
from mim_bench.records import swept
from mim_bench.records.finished import running
from mim_bench.records.pending import PendingCell, list_pending
from mim_bench.records.run_folder import read_config
from mim_bench.text import duration

_ORDER = ("done", "running", "queued", "failed", "missing")


@dataclass(frozen=True)
class JobRow:
    """A cell, or a fit that waits, runs or has failed."""

    label: str
    seed: int | None
    """Unset for a fit."""
    state: str
    missing: tuple[str, ...] = ()
    """Protocols without a record."""
    has_some: bool = False
    """True if the cell has records of other protocols."""
    stale: tuple[str, ...] = ()
    """Those of `missing` that have a record which the command would not make today."""
    job_id: str | None = None
    reason: str = ""
    """Reason why the job waits."""
    progress: dict[str, Any] | None = None
    """Last report of a running job: stage, done_steps, num_steps, images_per_s, seconds_left."""
    log: str | None = None
    last_lines: tuple[str, ...] = ()
    """Last lines of a failed job's log."""

    @property
    def detail(self) -> str:
        """Progress of a running job, why another one waits, or what a cell lacks, in a line."""
        if self.state == "running":
            return _progress_line(self.progress or {})
        shown = [f"{name} (stale)" if name in self.stale else name for name in self.missing]
        lacks = f"lacks {', '.join(shown)}" if shown and (self.has_some or self.stale) else ""
        return self.reason or lacks


@dataclass(frozen=True)
class Status:
    """State of a benchmark's cells and fits."""

    benchmark: str
    preset: str
    """Preset by the name or file that a sweep takes."""
    overrides: tuple[str, ...]
    cells: tuple[JobRow, ...]
    fits: tuple[JobRow, ...]

    @property
    def counts(self) -> dict[str, int]:
        """State -> number of cells."""
        counts = Counter(row.state for row in self.cells)
        return {state: counts[state] for state in _ORDER}

    def as_json(self) -> dict[str, Any]:
        """Status as JSON, for scripts."""
        return {
            "benchmark": self.benchmark,
            "preset": Path(self.preset).stem,
            "counts": self.counts,
            "cells": [vars(row) for row in self.cells],
            "fits": [vars(row) for row in self.fits],
        }


def status(
    name: str,
    preset: str | None = None,
    *,
    out: Path,
    results: Path,
    overrides: Sequence[str] = (),
) -> Status:
    """State of each cell of a benchmark, whether jobs of a cluster or processes of this machine run it.

    Args:
        preset: by default that of the last sweep on a cluster, with its overrides.
    """
    submitted = Ledger(out).jobs()
    own_jobs = [job for job in submitted if job.benchmark == Path(name).stem]
    if own_jobs:
        slurm.require()
    if preset is None:
        preset = own_jobs[-1].preset if own_jobs else "tiny"
        overrides = overrides or (own_jobs[-1].overrides if own_jobs else ())
    name, preset, overrides = swept.recall(name, preset, results, overrides)
    pending_cells = list_pending(name, preset, results=results, overrides=overrides, copy=False)
    jobs = BenchmarkJobs(submitted, pending_cells)
    running_here = running(
        out, [pending.cell.config for pending in pending_cells if pending.missing]
    )

    def row(pending: PendingCell) -> JobRow:
        current, config = jobs.cell_state(pending), pending.cell.config
        folder = None if current.is_live or not pending.missing else running_here.get(config.hash)
        current = State("running") if folder else current
        job_row = _row(current, pending.cell.label, config.seed, pending.missing)
        has_some = len(pending.missing) < len(pending.wanted)
        return replace(
            job_row,
            has_some=has_some,
            stale=pending.stale,
            progress=_progress_here(folder) if folder else job_row.progress,
        )

    cells = [row(pending) for pending in pending_cells]
    newest_fits = {job.key: jobs.states[job.job_id] for job in jobs.jobs if job.kind == "fit"}
    fits = [
        _row(fit, fit.job.label, None)
        for fit in newest_fits.values()
        if fit.job and (fit.is_live or fit.name == "failed")
    ]
    return Status(Path(name).stem, preset, tuple(overrides), tuple(cells), tuple(fits))


def _row(current: State, label: str, seed: int | None, missing: tuple[str, ...] = ()) -> JobRow:
    job, row = current.job, JobRow(label, seed, current.name, missing, reason=current.reason)
    if job is None:
        return row
    if current.name == "running":
        return replace(row, job_id=job.job_id, progress=state.progress(job))
    if current.name == "failed":
        log, lines = state.log(job)
        return replace(row, job_id=job.job_id, log=str(log), last_lines=tuple(lines))
    return replace(row, job_id=job.job_id)


def _progress_here(folder: Path) -> dict[str, Any]:
    """Progress of a run of this machine as a job reports it, from the last line of its newest log; empty before it."""
    logs = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    try:
        line = json.loads(logs[-1].read_text().splitlines()[-1])
        name = logs[-1].stem
        remaining = getattr(read_config(folder), name).epochs / line["epoch"] - 1
        if remaining <= 0:
            return {"stage": f"evaluating, {name} is done"}
        return {
            "stage": name,
            "done_steps": line["step"],
            "num_steps": round(line["step"] * (1 + remaining)),
            "images_per_s": line["images_per_s"],
            "seconds_left": line["seconds"] * remaining,
        }
    except (OSError, ValueError, LookupError, AttributeError):
        return {}  # no log yet, or a line that is being written


def _progress_line(report: dict[str, Any]) -> str:
    if not report:
        return "starting"
    if "num_steps" not in report:
        return report["stage"]
    line = (
        f"{report['stage']}: step {report['done_steps']:,} of {report['num_steps']:,}, "
        f"{report['images_per_s']:,.0f} images/s"
    )
    seconds_left = report["seconds_left"]
    return line if seconds_left is None else f"{line}, {duration(seconds_left)} left"


def table(status: Status) -> tuple[list[str], list[list[str]], list[str]]:
    """Status for people: headings, a row a cell, and lines: counts, and the ends of failed logs."""
    rows = []
    counts = ", ".join(f"{number} {name}" for name, number in status.counts.items() if number)
    lines = [f"{len(status.cells)} cell{'s' * (len(status.cells) != 1)}: {counts}"]
    for row in (*status.fits, *status.cells):
        seed = "all" if row.seed is None else str(row.seed)
        rows.append([row.label, seed, row.state, row.job_id or "", row.detail])
        if row.state == "failed":
            seed = "" if row.seed is None else f", seed {row.seed}"
            lines.append(f"{row.label}{seed} failed; the end of {row.log}:")
            lines += [f"    {line}" for line in row.last_lines]
    return ["cell", "seed", "state", "job", "note"], rows, lines


def cancel(name: str, preset: str | None = None, *, out: Path) -> list[Job]:
    """Ends a benchmark's jobs, of one preset or of all, and fits that no other benchmark waits for; returns them."""
    ledger = Ledger(out)
    if not ledger.path.is_file():
        raise UserError(
            f"{out} has no jobs of a cluster; a sweep of this machine ends by Ctrl-C, or `kill` of its process"
        )
    slurm.require()
    with ledger.lock():  # nothing is submitted meanwhile
        submitted = ledger.jobs()
        queue = slurm.queue(submitted)
        jobs = [job for job in submitted if job.job_id in queue]
        own_jobs = [
            job
            for job in jobs
            if job.benchmark == Path(name).stem
            and (preset is None or Path(job.preset).stem == Path(preset).stem)
        ]
        runs = [job for job in own_jobs if job.kind == "run"]
        ids = {job.job_id for job in runs}
        others = {need for job in jobs if job.job_id not in ids for need in job.needs}
        # a fit that this benchmark waits for may have been submitted by another one
        required = {job.job_id for job in own_jobs} | {need for job in runs for need in job.needs}
        fits = [
            job
            for job in jobs
            if job.kind == "fit" and job.job_id in required and job.job_id not in others
        ]
        slurm.cancel([job.job_id for job in (*runs, *fits)])
    return [*runs, *fits]
