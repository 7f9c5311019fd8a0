"""How the jobs of a ledger fare: of those that wait or run squeue knows, of the others submitit.

The queue comes first: a job that was queued again is alive, whatever result an earlier attempt of one of its
processes left behind. Of the others, what submitit wrote counts, then what sacct says; where sacct does not
work and no result lies there, the job has vanished.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from submitit import SlurmJob
from submitit.core.utils import pickle_load

from mim_bench.cluster import slurm
from mim_bench.cluster.job import progress_path
from mim_bench.cluster.ledger import Entry

StateName = Literal["queued", "running", "finished", "failed", "cancelled", "vanished"]
_FAILED = ("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
_NUM_LINES = 3


@dataclass(frozen=True)
class JobState:
    """How a job fares."""

    name: StateName
    reason: str = ""
    """Why it waits, as squeue says, or what sacct says of its end."""

    @property
    def is_live(self) -> bool:
        """It waits or runs."""
        return self.name in ("queued", "running")


def job_states(entries: Sequence[Entry]) -> dict[str, JobState]:
    """Job id -> how it fares; one call of squeue and at most one of sacct.

    Raises:
        UserError: Slurm does not answer.
    """
    queue = slurm.queue({entry.job_id for entry in entries}) if slurm.is_here() else {}
    states: dict[str, JobState] = {}
    others = [entry for entry in entries if entry.job_id not in queue]
    jobs = {entry.job_id: _job(entry) for entry in others}  # all are made before sacct is asked
    logging.getLogger("submitit").setLevel(logging.ERROR)  # it warns of a sacct that does not work
    if jobs and slurm.is_here():
        next(iter(jobs.values())).get_info(mode="force")
    for entry in entries:
        if (queued := queue.get(entry.job_id)) is not None:
            name = "queued" if queued.is_waiting else "running"
            states[entry.job_id] = JobState(name, queued.reason if name == "queued" else "")
        else:
            job = jobs[entry.job_id]
            states[entry.job_id] = _ended(entry, job.get_info(mode="cache").get("State", ""))
    return states


def _job(entry: Entry) -> SlurmJob[Any]:
    return SlurmJob(entry.folder, entry.job_id, tasks=range(entry.tasks))


def _ended(entry: Entry, said: str) -> JobState:
    if said.startswith("CANCELLED"):
        return JobState("cancelled", said)
    outcomes = [outcome for _, outcome, _ in _results(entry)]
    if "error" in outcomes or said.startswith(_FAILED):
        return JobState("failed", said)
    return JobState("finished" if "success" in outcomes else "vanished", said)


def _results(entry: Entry) -> list[tuple[int, str, Any]]:
    """(process, `success` or `error`, value or traceback) of those that left one, the first one first."""
    found = []
    for task in range(entry.tasks):
        path = SlurmJob(entry.folder, entry.job_id, tasks=(task,)).paths.result_pickle
        if path.is_file():
            found.append((path.stat().st_mtime, task, *pickle_load(path)))
    return [
        (task, outcome, value) for _, task, outcome, value in sorted(found, key=lambda one: one[:2])
    ]


def result(entry: Entry) -> Any:
    """What the job returned; None if nothing lies there."""
    return next((value for _, outcome, value in _results(entry) if outcome == "success"), None)


def log(entry: Entry) -> tuple[Path, list[str]]:
    """A failed job's log and its last lines; of several processes that of the first to fail."""
    task, trace = next(
        ((task, value) for task, outcome, value in _results(entry) if outcome == "error"), (0, "")
    )
    path = SlurmJob(entry.folder, entry.job_id, tasks=(task,)).paths.stderr
    text = trace or (path.read_text(errors="replace") if path.is_file() else "")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return path, lines[-_NUM_LINES:]


def progress(entry: Entry) -> dict[str, Any]:
    """How far a running job is, as it last told; empty if it has told nothing yet."""
    try:
        return json.loads(progress_path(Path(entry.folder), entry.job_id).read_text())
    except (OSError, json.JSONDecodeError):
        return {}
