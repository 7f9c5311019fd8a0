"""Which jobs a sweep hands to Slurm, in which arrays, and which of them wait for which.

One job a run. Those that wait for the same are tasks of one array; a target that must be fitted is a job of
its own, for which all its runs wait. Nothing here talks to Slurm.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mim_bench.cluster.job import FitJob, RunJob
from mim_bench.cluster.ledger import Entry
from mim_bench.cluster.settings import Size


@dataclass(frozen=True)
class Part:
    """One job, or one task of an array."""

    work: RunJob | FitJob
    """What it calls."""
    entry: Entry
    """Its line of the ledger, but for the job's id and those that it needs."""

    @property
    def name(self) -> str:
        """For people."""
        if self.entry.kind == "fit":
            return self.entry.label
        if isinstance(self.work, RunJob) and self.entry.protocols:
            return f"{self.entry.label}, seed {self.entry.seed}: {', '.join(self.entry.protocols)}"
        return f"{self.entry.label}, seed {self.entry.seed}: pre-training alone"


@dataclass(frozen=True)
class Wait:
    """A dependency."""

    how: Literal["afterok", "afterany", "aftercorr"]
    """After success, after any end, or each task after the success of the other array's same task."""
    job_id: str = ""
    """Of a job that is there already."""
    batch: int = -1
    """Or place of one of the same submission."""


@dataclass(frozen=True)
class Batch:
    """What one sbatch file submits: an array, or a single job."""

    title: str
    parts: tuple[Part, ...]
    size: Size
    waits: tuple[Wait, ...] = field(default=())
    at_once: int = 1
    """Tasks that run at a time."""


@dataclass(frozen=True)
class Group:
    """Runs that wait for the same and are of one size; with evaluations apart, these wait for them."""

    parts: tuple[Part, ...]
    size: Size
    waits: tuple[Wait, ...]
    title: str = "runs"
    after: tuple[Part, ...] = ()
    """Evaluations, one for each part."""
    after_size: Size | None = None


def arrays(
    fits: Sequence[Batch], groups: Sequence[Group], *, max_size: int, at_once: int | None
) -> list[Batch]:
    """Fits, then the groups as arrays, in the order of submission.

    Args:
        max_size: tasks of an array at most; longer ones are split.
        at_once: runs that run at a time, over all arrays; unset: no bound.
    """
    found: list[Batch] = []
    for group in groups:
        for part in _pieces(range(len(group.parts)), max_size):
            place = len(fits) + len(found)
            found.append(
                Batch(group.title, tuple(group.parts[i] for i in part), group.size, group.waits)
            )
            if group.after_size is not None:
                # of a single job there is no "same task"
                how = "aftercorr" if len(part) > 1 else "afterok"
                after = tuple(group.after[i] for i in part)
                found.append(
                    Batch("evaluations", after, group.after_size, (Wait(how, batch=place),))
                )
    sizes = [len(batch.parts) for batch in found]
    if at_once is None:
        bounded = [replace(batch, at_once=size) for batch, size in zip(found, sizes, strict=True)]
    else:
        shares, bounded = share_out(at_once, sizes), []
        for place, (batch, share) in enumerate(zip(found, shares, strict=True)):
            # more arrays than may run at a time: each takes the place of an earlier one
            turn = (
                (Wait("afterany", batch=len(fits) + place - at_once),) if place >= at_once else ()
            )
            bounded.append(replace(batch, at_once=share, waits=batch.waits + turn))
    return [*fits, *bounded]


def _pieces(places: range, most: int) -> list[range]:
    return [places[start : start + most] for start in range(0, len(places), most)]


def share_out(at_once: int, sizes: Sequence[int]) -> list[int]:
    """How many tasks of each array may run at a time so that together they keep to a bound.

    Every array gets one, and what is left goes in turn to those that have more tasks. Where there are more
    arrays than the bound, each gets one, and the later ones must wait for earlier ones.
    """
    shares = [1] * len(sizes)
    left = at_once - len(sizes)
    for place in itertools.cycle(range(len(sizes))):
        if left <= 0 or shares == list(sizes):
            return shares
        if shares[place] < sizes[place]:
            shares[place] += 1
            left -= 1
    return shares
