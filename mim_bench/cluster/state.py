"""States of jobs and of a benchmark's cells on a cluster.

The queue comes first: a job that was queued again is alive, whatever result an earlier attempt of one of its
processes left behind. Of the others, the result that submitit wrote counts, then what sacct says; where sacct
does not work and no result lies there, the job has vanished.

A cell is done when the results hold its records. Of the others the ledger says which job writes which record;
the newest job counts, or one that is alive. A job that was cancelled or has vanished leaves its records
missing; if it was cancelled because one that it needs has failed, they have failed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from submitit import SlurmJob
from submitit.core.utils import pickle_load

from mim_bench.cluster import slurm
from mim_bench.cluster.job import Job, progress_path
from mim_bench.records.pending import PendingCell
from mim_bench.records.run_folder import record_hash, sweep_key

StateName = Literal[
    "done", "missing", "queued", "running", "failed", "finished", "cancelled", "vanished"
]
_FAILED = ("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
_NUM_LINES = 3


@dataclass(frozen=True)
class State:
    """State of a job (queued to vanished), of a missing record, or of a cell (done to failed)."""

    name: StateName
    job: Job | None = None
    """The job itself, or the one that determines the state."""
    reason: str = ""
    """Reason why the job waits, as squeue reports it, or its end as sacct reports it."""

    @property
    def is_live(self) -> bool:
        """True while it waits or runs."""
        return self.name in ("queued", "running")


class BenchmarkJobs:
    """The jobs that a benchmark's missing cells have had, and their states now."""

    def __init__(self, jobs: Sequence[Job], pending_cells: Sequence[PendingCell]) -> None:
        missing = [pending.cell.config for pending in pending_cells if pending.missing]
        keys = {config.hash for config in missing} | {sweep_key(config) for config in missing}
        self.jobs = [job for job in jobs if job.key in keys]
        self.states = job_states(self.jobs)

    def live(self, key: str) -> list[Job]:
        """Jobs of a run, or of a fit, that wait or run."""
        return [job for job in self.jobs if job.key == key and self.states[job.job_id].is_live]

    def is_finished(self, key: str) -> bool:
        """True if the newest job of a fit has finished and its file is there."""
        newest = next((job for job in reversed(self.jobs) if job.key == key), None)
        if newest is None or self.states[newest.job_id].name != "finished":
            return False
        return Path(result(newest)).is_file()

    def record_state(self, pending: PendingCell, protocol: str) -> State:
        """State of one missing record."""
        key = record_hash(pending.cell.config, protocol)
        jobs = [job for job in reversed(self.jobs) if key in job.records]
        if not jobs:
            return State("missing")
        job = next((job for job in jobs if self.states[job.job_id].is_live), jobs[0])
        state = self.states[job.job_id]
        required_states = [self.states[job_id] for job_id in job.needs if job_id in self.states]
        if state.is_live:
            # an evaluation waits while its pre-training runs: that one says more
            runs = [other for other in required_states if other.job and other.job.kind == "run"]
            return next((other for other in (state, *runs) if other.name == "running"), state)
        failed = next(
            (other.job for other in (state, *required_states) if other.name == "failed"), None
        )
        return State("failed", failed) if failed else State("missing", job)

    def cell_state(self, pending: PendingCell) -> State:
        """State of a cell: running, queued, failed or missing, the first that one of its records has."""
        if not pending.missing:
            return State("done")
        states = [self.record_state(pending, protocol) for protocol in pending.missing]
        order: list[StateName] = ["running", "queued", "failed", "missing"]
        return min(states, key=lambda state: order.index(state.name))


def job_states(jobs: Sequence[Job]) -> dict[str, State]:
    """Job id -> state; one call of squeue and at most one of sacct."""
    is_here = slurm.is_here()
    queue = slurm.queue(jobs) if is_here else {}
    others = [job for job in jobs if job.job_id not in queue]
    history = slurm.history(others) if is_here else {}
    states: dict[str, State] = {}
    for job in jobs:
        if job.job_id in queue:
            reason = queue[job.job_id]
            states[job.job_id] = State("queued" if reason else "running", job, reason)
        else:
            ended = history.get(job.job_id, "")
            states[job.job_id] = State(_ended(job, ended), job, ended)
    return states


def _ended(job: Job, sacct_state: str) -> StateName:
    if sacct_state.startswith("CANCELLED"):
        return "cancelled"
    outcomes = [outcome for _, outcome, _ in _results(job)]
    if "error" in outcomes or sacct_state.startswith(_FAILED):
        return "failed"
    return "finished" if "success" in outcomes else "vanished"


def _results(job: Job) -> list[tuple[int, str, Any]]:
    """(process, `success` or `error`, value or traceback) of those that left one, the first one first."""
    results = []
    for task in range(job.tasks):
        path = SlurmJob(job.folder, job.job_id, tasks=(task,)).paths.result_pickle
        if path.is_file():
            results.append((path.stat().st_mtime, task, *pickle_load(path)))
    return [result[1:] for result in sorted(results, key=lambda result: result[:2])]


def result(job: Job) -> str:
    """The path that the job returned; empty if it has no result."""
    return next((value for _, outcome, value in _results(job) if outcome == "success"), "")


def log(job: Job) -> tuple[Path, list[str]]:
    """A failed job's log and its last lines; of several processes that of the first to fail."""
    task, trace = next(
        ((task, value) for task, outcome, value in _results(job) if outcome == "error"), (0, "")
    )
    path = SlurmJob(job.folder, job.job_id, tasks=(task,)).paths.stderr
    text = trace or (path.read_text(errors="replace") if path.is_file() else "")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return path, lines[-_NUM_LINES:]


def progress(job: Job) -> dict[str, Any]:
    """Progress of a running job as it last reported; empty if it has reported nothing yet."""
    try:
        return json.loads(progress_path(Path(job.folder), job.job_id).read_text())
    except (OSError, json.JSONDecodeError):
        return {}
