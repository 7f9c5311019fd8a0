"""Simulation of a list of jobs on several GPUs: list scheduling.

Jobs are handed to the queue in the order of the list, each as soon as there is a place, with what it has to
wait for (`sbatch --dependency`); a waiting job keeps its place. Free GPUs go to the first job of the list
that is queued and waits for no other. Starting a job takes no time.

A job takes all its GPUs at once. While too few are free for it, no later job starts, however small: there is
no backfill, which may let Slurm start some jobs earlier.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from mim_bench.errors import UserError


@dataclass(frozen=True)
class Job:
    """One entry of a queue."""

    name: str
    hours: float
    """Hours from the start of the job to its end, on all its GPUs."""
    needs: tuple[str, ...] = ()
    """Names of jobs that must be done before; they stand earlier in the list."""
    gpus: int = 1


@dataclass(frozen=True)
class Outcome:
    """Start times and total of the scheduled jobs."""

    start_hours: dict[str, float]
    """Hour at which each job starts, by name, in the order of the list."""
    gpu_hours: float
    """Hours times GPUs, summed over all jobs."""
    makespan_hours: float
    """Hours from the beginning until the last job is done."""
    chain: tuple[Job, ...]
    """The longest sequence of jobs that wait for one another: no number of GPUs is faster."""

    @property
    def chain_hours(self) -> float:
        return sum(job.hours for job in self.chain)


def simulate(jobs: Sequence[Job], gpus: int, queue_limit: int | None = None) -> Outcome:
    """Start of every job on `gpus` GPUs, with at most `queue_limit` jobs queued and running together.

    A later, smaller job never starts before an earlier one that waits for GPUs alone (no backfill).
    """
    _check(jobs, gpus, queue_limit)
    start_hour: dict[str, float] = {}
    done: set[str] = set()
    queued: list[Job] = []
    running: list[tuple[float, int, Job]] = []  # end, place for ties
    hour, num_submitted, free_gpus = 0.0, 0, gpus
    while len(done) < len(jobs):
        free_slots = len(jobs) if queue_limit is None else queue_limit - len(queued) - len(running)
        queued += jobs[num_submitted : num_submitted + free_slots]
        num_submitted = min(num_submitted + free_slots, len(jobs))
        for job in [job for job in queued if done.issuperset(job.needs)]:
            if job.gpus > free_gpus:
                break
            queued.remove(job)
            free_gpus -= job.gpus
            start_hour[job.name] = hour
            heapq.heappush(running, (hour + job.hours, len(start_hour), job))
        hour = running[0][0]
        while running and running[0][0] <= hour:
            job = heapq.heappop(running)[2]
            done.add(job.name)
            free_gpus += job.gpus
    return Outcome(
        start_hours={job.name: start_hour[job.name] for job in jobs},
        gpu_hours=sum(job.gpus * job.hours for job in jobs),
        makespan_hours=hour,
        chain=_longest_chain(jobs),
    )


def _check(jobs: Sequence[Job], gpus: int, queue_limit: int | None) -> None:
    for name, value in (("gpus", gpus), ("queue_limit", queue_limit)):
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: allowed: whole numbers from 1")
    names: set[str] = set()
    for job in jobs:
        if not 1 <= job.gpus <= gpus:
            raise UserError(f"job '{job.name}' on {job.gpus} GPUs: allowed: 1 to {gpus}")
        if job.name in names or not names.issuperset(job.needs):
            raise ValueError(f"job {job.name}: named twice, or before what it needs")
        names.add(job.name)


def _longest_chain(jobs: Sequence[Job]) -> tuple[Job, ...]:
    until: dict[str, tuple[float, tuple[Job, ...]]] = {}
    for job in jobs:
        before = max((until[name] for name in job.needs), key=lambda end: end[0], default=(0.0, ()))
        until[job.name] = (before[0] + job.hours, (*before[1], job))
    return max(until.values(), key=lambda end: end[0], default=(0.0, ()))[1]
