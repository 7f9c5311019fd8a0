"""Batches of jobs for Slurm: arrays, their dependencies, and how many tasks run at a time."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mim_bench.cluster.job import Job
from mim_bench.cluster.settings import Size


@dataclass(frozen=True)
class Dependency:
    """A job, or an array, that a batch waits for."""

    type: Literal["afterok", "afterany", "aftercorr"]
    """After success, after any end, or each task after the success of the other array's same task."""
    job_id: str = ""
    """Id of a job that is queued already."""
    batch: int = -1
    """Or index of a batch of the same plan."""


@dataclass(frozen=True)
class Batch:
    """The content of one sbatch file: an array, or a single job."""

    title: str
    jobs: tuple[Job, ...]
    size: Size
    dependencies: tuple[Dependency, ...] = ()
    max_running: int = 1
    """Tasks that run at a time."""


def arrays(
    fits: Sequence[Batch],
    groups: Iterable[Sequence[Batch]],
    *,
    max_size: int,
    max_running: int | None,
) -> list[Batch]:
    """Fits, then the groups as arrays, in the order of submission.

    Args:
        groups: each one batch of runs, or pre-trainings and their evaluations, task by task.
        max_size: tasks of an array at most; longer ones are split.
        max_running: runs that run at a time, over all arrays; unset: no bound.
    """
    split: list[Batch] = []
    for first, *evaluations in groups:
        for start in range(0, len(first.jobs), max_size):
            piece = slice(start, start + max_size)
            split.append(replace(first, jobs=first.jobs[piece]))
            for batch in evaluations:
                # a single job has no "same task"
                how = "aftercorr" if len(split[-1].jobs) > 1 else "afterok"
                after = (Dependency(how, batch=len(fits) + len(split) - 1),)
                split.append(replace(batch, jobs=batch.jobs[piece], dependencies=after))
    sizes = [len(batch.jobs) for batch in split]
    if max_running is None:
        limits = sizes
    else:
        limits = split_limit(max_running, sizes)
        # more arrays than may run at a time: each starts after the end of an earlier one
        for number in range(max_running, len(split)):
            previous = Dependency("afterany", batch=len(fits) + number - max_running)
            batch = split[number]
            split[number] = replace(batch, dependencies=(*batch.dependencies, previous))
    bounded = [
        replace(batch, max_running=limit) for batch, limit in zip(split, limits, strict=True)
    ]
    return [*fits, *bounded]


def split_limit(max_running: int, sizes: Sequence[int]) -> list[int]:
    """Splits a bound on running tasks over arrays of these sizes.

    Every array gets one, and the rest goes in turn to those that have more tasks. Where there are more
    arrays than the bound, each gets one, and the later ones must wait for earlier ones.
    """
    limits = [1] * len(sizes)
    remainder = max_running - len(sizes)
    for number in itertools.cycle(range(len(sizes))):
        if remainder <= 0 or limits == list(sizes):
            return limits
        if limits[number] < sizes[number]:
            limits[number] += 1
            remainder -= 1
    return limits
