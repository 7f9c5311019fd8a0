"""What a sweep hands to Slurm: which cells are left, what each job runs, and its sbatch file.

A job that needs a target's fit is started after it, and one whose run another job is busy with after that
one. Nothing is written here but records that other benchmarks have of the same runs; `mim_bench.cluster.submit` hands
it over, and --dry-run shows it.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from submitit.slurm.slurm import _make_sbatch_string

from mim_bench.cluster import slurm
from mim_bench.cluster.batch import Batch, Group, Part, Wait, arrays
from mim_bench.cluster.cell_state import KnownJobs
from mim_bench.cluster.job import FitJob, RunJob
from mim_bench.cluster.job_state import result
from mim_bench.cluster.ledger import Entry, Ledger
from mim_bench.cluster.settings import Cluster, Size, check_batches, sbatch_parameters
from mim_bench.cluster.snapshot import Snapshot, snapshot
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.run import RunConfig
from mim_bench.config.trainings import needs_pretraining
from mim_bench.experiment import cost
from mim_bench.records import pending, store
from mim_bench.records.finished import fitted, pretrained
from mim_bench.records.pending import PendingCell
from mim_bench.records.run_folder import record_hash, sweep_key
from mim_bench.targets.build import make_target


@dataclass(frozen=True)
class Asked:
    """What a user asks to be swept."""

    name: str
    preset: str
    out: Path
    results: Path
    overrides: tuple[str, ...] = ()
    protocols: tuple[str, ...] | None = None
    """Of the benchmark's, only these; by default all."""
    retry_failed: bool = False
    evaluate_apart: bool = False
    command: str | None = None
    """What records name as their origin; by default this process's command line."""


@dataclass(frozen=True)
class Submission:
    """What is to be handed over, and what is not."""

    asked: Asked
    cluster: Cluster
    batches: list[Batch]
    lines: list[str]
    """What is left out, and why."""
    folder: Path
    """Of the jobs' scripts, logs and results; not yet there."""
    code: Snapshot

    @property
    def num_runs(self) -> int:
        """Jobs, fits left out."""
        return sum(part.entry.kind == "run" for batch in self.batches for part in batch.parts)

    def parameters(self, batch: Batch, job_ids: Sequence[str] | None = None) -> dict[str, Any]:
        """What submitit is given for a batch.

        Args:
            job_ids: of the batches before it; without them a dependency names the batch.
        """

        def waited(wait: Wait) -> str:
            if wait.job_id:
                return f"{wait.how}:{wait.job_id}"
            if job_ids is not None:
                return f"{wait.how}:{job_ids[wait.batch]}"
            return f"{wait.how}:<file {wait.batch + 1} ({self.batches[wait.batch].title})>"

        return sbatch_parameters(
            self.cluster,
            batch.size,
            name=f"mim_bench-{Path(self.asked.name).stem}",
            setup=self.code.setup(),
            dependency=",".join(map(waited, batch.waits)) or None,
            at_once=batch.at_once,
        )

    def script(self, batch: Batch) -> str:
        """The sbatch file of a batch."""
        python = shlex.quote(sys.executable)
        command = f"{python} -u -m submitit.core._submit {shlex.quote(str(self.folder))}"
        parameters = self.parameters(batch)
        if len(batch.parts) > 1:
            parameters["map_count"] = len(batch.parts)
        return _make_sbatch_string(command, self.folder, **parameters)


def submission(asked: Asked, cluster: Cluster, *, copy: bool = True) -> Submission:
    """What there is to hand over now.

    Args:
        copy: take over records that other benchmarks have of the same runs; if not, no file is written.

    Raises:
        UserError: an unknown name, a batch that cannot be shared out, a damaged record, or a silent Slurm.
    """
    tasks = pending.plan(
        asked.name, asked.preset, results=asked.results, overrides=asked.overrides,
        protocols=asked.protocols, copy=copy,
    )  # fmt: skip
    ledger, code = Ledger(asked.out), snapshot(asked.out)
    jobs = KnownJobs(ledger.entries(), tasks)
    left, lines = _left(tasks, jobs, asked)
    for config in (task.config for runs in left for task in runs):
        check_batches(config, cluster, apart=asked.evaluate_apart)
    maker = _Maker(asked, cluster, ledger.new_folder(Path(asked.name).stem), code)
    groups: dict[tuple[tuple[Wait, ...], bool], list[list[PendingCell]]] = {}
    there = pretrained(asked.out, [task.cell.config for runs in left for task in runs])
    for runs in left:
        config = runs[0].cell.config
        trains = any(needs_pretraining(task.config) for task in runs) and config.hash not in there
        waits = [Wait("afterany", job.job_id) for job in jobs.live(config.hash)]
        if trains:
            waits = [*maker.fit(config, jobs), *waits]
        groups.setdefault((tuple(waits), trains and asked.evaluate_apart), []).append(runs)
    made = [maker.group(runs, waits, apart) for (waits, apart), runs in groups.items()]
    batches = arrays(maker.fits, made, max_size=slurm.max_array_size(), at_once=cluster.array)
    return Submission(asked, cluster, batches, lines, maker.folder, code)


def _left(
    tasks: Sequence[PendingCell], jobs: KnownJobs, asked: Asked
) -> tuple[list[list[PendingCell]], list[str]]:
    """What is to be submitted, cells of the same run together, and lines on what is not."""
    runs: dict[str, list[PendingCell]] = {}
    num: dict[str, int] = dict.fromkeys(("done", "live", "failed"), 0)
    idle: set[str] = set()
    for task in tasks:
        num["done"] += not task.missing
        idle |= {protocol for protocol in task.missing if PROTOCOLS[protocol].exclusive}
        part = task.only(exclusive=False)
        states = {protocol: jobs.of_record(part, protocol).name for protocol in part.missing}
        num["live"] += bool({"queued", "running"} & set(states.values()))
        num["failed"] += "failed" in states.values()
        wanted = {"missing", "failed"} if asked.retry_failed else {"missing"}
        part = part.having(tuple(name for name, state in states.items() if state in wanted))
        if part.missing:
            runs.setdefault(part.cell.config.hash, []).append(part)
    lines = []
    if num["done"]:
        lines.append(f"{_cells(num['done'])} done before")
    if num["live"]:
        lines.append(f"{_cells(num['live'])} queued or running already")
    if num["failed"] and not asked.retry_failed:
        lines.append(
            f"{_cells(num['failed'])} failed before and left; --retry-failed tries them again"
        )
    for protocol in sorted(idle):
        lines.append(
            f"{protocol}: left out, it needs a machine for itself; on one, "
            f"`sweep {asked.name} --preset {asked.preset} --protocols {protocol}`"
        )
    return list(runs.values()), lines


def _cells(number: int) -> str:
    return f"{number} cell{'s' * (number != 1)}"


class _Maker:
    """Makes the jobs of one submission."""

    def __init__(self, asked: Asked, cluster: Cluster, folder: Path, code: Snapshot) -> None:
        self.asked, self.cluster, self.folder, self.code = asked, cluster, folder, code
        self.fits: list[Batch] = []
        self._waits: dict[str, tuple[Wait, ...]] = {}  # of a fit
        self._records = store.home(asked.name, asked.preset, asked.results.resolve()) / "records"
        self._command = asked.command or " ".join(["python -m mim_bench", *sys.argv[1:]])
        self._submitted = datetime.now(UTC).isoformat(timespec="seconds")

    def fit(self, config: RunConfig, jobs: KnownJobs) -> tuple[Wait, ...]:
        """What a run waits for before its target is fitted; the fit is made a job if it is not one yet."""
        key = sweep_key(config)
        if key not in self._waits:
            self._waits[key] = self._fit(config, key, jobs)
        return self._waits[key]

    def _fit(self, config: RunConfig, key: str, jobs: KnownJobs) -> tuple[Wait, ...]:
        if live := jobs.live(key):
            return (Wait("afterok", live[-1].job_id),)
        if not make_target(cost.sized(config)).needs_fit or fitted(self.asked.out, config):
            return ()
        if (
            (last := jobs.newest(key))
            and last[1].name == "finished"
            and Path(result(last[0])).is_file()
        ):
            return ()
        size, label = self.cluster.one, f"fit {config.target.name}"
        work = FitJob(
            config.model_dump(mode="json"), str(self.asked.out.resolve()), size.cpus_per_task
        )
        entry = self._entry("fit", label, None, key, size)
        self.fits.append(Batch(label, (Part(work, entry),), size))
        return (Wait("afterok", batch=len(self.fits) - 1),)

    def group(
        self, runs: Sequence[Sequence[PendingCell]], waits: tuple[Wait, ...], apart: bool
    ) -> Group:
        """Runs that wait for the same."""
        cluster = self.cluster
        if not apart:
            evaluates = self.asked.evaluate_apart
            size = cluster.evaluation if evaluates else cluster
            parts = tuple(self._part(tasks, size) for tasks in runs)
            return Group(parts, size, waits, "evaluations" if evaluates else "runs")
        alone = [[task.having(()) for task in tasks[:1]] for tasks in runs]
        return Group(
            tuple(self._part(tasks, cluster) for tasks in alone), cluster, waits, "pre-trainings",
            tuple(self._part(tasks, cluster.evaluation) for tasks in runs), cluster.evaluation,
        )  # fmt: skip

    def _part(self, tasks: Sequence[PendingCell], size: Size) -> Part:
        config = tasks[0].cell.config
        work = RunJob(
            configs=tuple(task.config.model_dump(mode="json") for task in tasks),
            out=str(self.asked.out.resolve()),
            records=str(self._records),
            command=self._command,
            num_threads=size.cpus_per_task,
        )
        label = "; ".join(task.cell.label for task in tasks)
        made = [(task, protocol) for task in tasks for protocol in task.missing]
        entry = self._entry("run", label, config.seed, config.hash, size)
        more = {
            "protocols": tuple(dict.fromkeys(protocol for _, protocol in made)),
            "records": tuple(record_hash(task.cell.config, protocol) for task, protocol in made),
        }
        return Part(work, entry.model_copy(update=more))

    def _entry(
        self, kind: Literal["fit", "run"], label: str, seed: int | None, key: str, size: Size
    ) -> Entry:
        return Entry(
            kind=kind, benchmark=Path(self.asked.name).stem, preset=self.asked.preset,
            overrides=self.asked.overrides, label=label, seed=seed, key=key, job_id="",
            folder=str(self.folder), tasks=size.ranks, snapshot=str(self.code.folder),
            submitted=self._submitted,
        )  # fmt: skip
