"""How a sweep on a cluster fares, cell by cell, and its end before time.

python -m mim_bench status targets            # add --json for scripts
python -m mim_bench cancel targets
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mim_bench.cluster import job_state, slurm
from mim_bench.cluster.cell_state import CellState, KnownJobs
from mim_bench.cluster.ledger import Entry, Ledger
from mim_bench.records import pending

_ORDER = ("done", "running", "queued", "failed", "missing")


@dataclass(frozen=True)
class Row:
    """A cell, or a fit that waits, runs or has failed."""

    label: str
    seed: int | None
    """Unset for a fit."""
    state: str
    missing: tuple[str, ...] = ()
    """Protocols without a record."""
    job_id: str | None = None
    reason: str = ""
    """Why it waits."""
    progress: dict[str, Any] | None = None
    """Of a running one, as its job last told: stage, done_steps, num_steps, images_per_s, seconds_left."""
    log: str | None = None
    last_lines: tuple[str, ...] = ()
    """Of a failed one."""

    @property
    def detail(self) -> str:
        """What there is to say, in a line."""
        if self.state == "running":
            return _progress_line(self.progress or {})
        return self.reason


@dataclass(frozen=True)
class Status:
    """How a benchmark fares."""

    benchmark: str
    preset: str
    """As a sweep takes it."""
    overrides: tuple[str, ...]
    cells: tuple[Row, ...]
    fits: tuple[Row, ...]

    @property
    def counts(self) -> dict[str, int]:
        """State -> number of cells."""
        found = Counter(row.state for row in self.cells)
        return {state: found[state] for state in _ORDER}

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        rows = {"cells": self.cells, "fits": self.fits}
        return {
            "benchmark": self.benchmark,
            "preset": Path(self.preset).stem,
            "counts": self.counts,
            **{name: [vars(row) for row in found] for name, found in rows.items()},
        }


def status(
    name: str,
    preset: str | None = None,
    *,
    out: Path,
    results: Path,
    overrides: Sequence[str] = (),
) -> Status:
    """How each cell of a benchmark fares.

    Args:
        preset: by default that of the last sweep on a cluster, with its overrides.

    Raises:
        UserError: an unknown name, a damaged record or ledger, or Slurm does not answer.
    """
    entries = Ledger(out).entries()
    mine = [entry for entry in entries if entry.benchmark == Path(name).stem]
    if mine:
        slurm.require()
    if preset is None:
        preset = mine[-1].preset if mine else "tiny"
        overrides = overrides or (mine[-1].overrides if mine else ())
    tasks = pending.plan(name, preset, results=results, overrides=overrides, copy=False)
    jobs = KnownJobs(entries, tasks)
    cells = [
        _row(jobs.of_cell(task), task.cell.label, task.cell.config.seed, task.missing)
        for task in tasks
    ]
    fits = {
        entry.key: entry for entry in jobs.entries if entry.kind == "fit"
    }.values()  # the last ones
    states = [(entry, jobs.states[entry.job_id]) for entry in fits]
    shown = [
        _row(CellState(state.name, entry, state.reason), entry.label, None)
        for entry, state in states
        if state.name in ("queued", "running", "failed")
    ]
    return Status(Path(name).stem, preset, tuple(overrides), tuple(cells), tuple(shown))


def _row(state: CellState, label: str, seed: int | None, missing: tuple[str, ...] = ()) -> Row:
    entry = state.entry
    if entry is None:
        return Row(label, seed, state.name, missing)
    path, lines = job_state.log(entry) if state.name == "failed" else (None, [])
    return Row(
        label, seed, state.name, missing, entry.job_id, state.reason,
        job_state.progress(entry) if state.name == "running" else None,
        str(path) if path else None, tuple(lines),
    )  # fmt: skip


def _progress_line(told: dict[str, Any]) -> str:
    if not told:
        return "starting"
    if "num_steps" not in told:
        return told["stage"]
    left = told["seconds_left"]
    parts = [
        f"{told['stage']}: step {told['done_steps']:,} of {told['num_steps']:,}",
        f"{told['images_per_s']:,.0f} images/s",
        *([f"{_time(left)} left"] if left is not None else []),
    ]
    return ", ".join(parts)


def _time(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min" if seconds >= 60 else f"{seconds:.0f} s"


def table(found: Status) -> RenderableType:
    """For people: a row a cell, counts under it, and the ends of failed logs."""
    shown = Table(
        "cell", "seed", "state", "job", "", title=f"{found.benchmark}, {Path(found.preset).stem}"
    )
    shown.title_style = ""
    for row in (*found.fits, *found.cells):
        seed = "all" if row.seed is None else str(row.seed)
        shown.add_row(escape(row.label), seed, row.state, row.job_id or "", escape(row.detail))
    counts = ", ".join(f"{number} {state}" for state, number in found.counts.items() if number)
    lines = [Text(f"{len(found.cells)} cell{'s' * (len(found.cells) != 1)}: {counts}")]
    for row in (*found.fits, *found.cells):
        if row.state == "failed":
            seed = "" if row.seed is None else f", seed {row.seed}"
            lines.append(Text(f"{row.label}{seed} failed; the end of {row.log}:", overflow="fold"))
            lines += [Text(f"    {line}", overflow="fold") for line in row.last_lines]
    return Group(shown, *lines)


def cancel(name: str, preset: str | None = None, *, out: Path) -> list[Entry]:
    """Ends a benchmark's jobs that wait or run, and the fits that no other benchmark waits for.

    Args:
        preset: only that one's; by default all.

    Returns:
        What was ended.

    Raises:
        UserError: Slurm does not answer or refuses.
    """
    slurm.require()
    ledger = Ledger(out)
    with ledger.lock():  # nothing is handed over meanwhile
        live = slurm.queue({entry.job_id for entry in ledger.entries()})
        entries = [entry for entry in ledger.entries() if entry.job_id in live]
        mine = [
            entry
            for entry in entries
            if entry.benchmark == Path(name).stem
            and (preset is None or Path(entry.preset).stem == Path(preset).stem)
        ]
        runs = [entry for entry in mine if entry.kind == "run"]
        ids = {entry.job_id for entry in runs}
        others = {need for entry in entries if entry.job_id not in ids for need in entry.needs}
        # a fit that this benchmark waits for may have been handed over by another one
        needed = {need for entry in runs for need in entry.needs}
        fits = [
            entry
            for entry in entries
            if entry.kind == "fit"
            and (entry in mine or entry.job_id in needed)
            and entry.job_id not in others
        ]
        slurm.cancel([entry.job_id for entry in (*runs, *fits)])
    return [*runs, *fits]
