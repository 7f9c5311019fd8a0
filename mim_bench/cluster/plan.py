"""The jobs that a sweep submits to Slurm: which cells are left, one job a run, in arrays, with their dependencies.

Jobs that wait for the same are tasks of one array. A target that must be fitted is a job of its own, for which
all its runs wait; a job whose run another job is busy with waits for that one. Nothing is written here but
records that other benchmarks have of the same runs; `mim_bench.cluster.submit` submits the plan, and --dry-run
shows it.
"""

import itertools
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from mim_bench.cluster import slurm
from mim_bench.cluster.batches import Batch, Dependency, arrays
from mim_bench.cluster.job import Job
from mim_bench.cluster.ledger import Ledger
from mim_bench.cluster.settings import Cluster, Size, check_batches
from mim_bench.cluster.snapshot import Snapshot, snapshot
from mim_bench.cluster.state import BenchmarkJobs
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.run import RunConfig
from mim_bench.config.trainings import needs_pretraining
from mim_bench.errors import UserError, check_printable
from mim_bench.experiment import cost
from mim_bench.experiment.request import SweepRequest
from mim_bench.records import store
from mim_bench.records.finished import fitted, pretrained
from mim_bench.records.pending import PendingCell, list_pending
from mim_bench.records.run_folder import record_hash, sweep_key
from mim_bench.targets.build import make_target


@dataclass(frozen=True)
class Plan:
    """The batches to submit, in their order, and what is left out."""

    request: SweepRequest
    cluster: Cluster
    batches: list[Batch]
    notes: list[str]
    """Protocols that are left out, and why."""
    folder: Path
    """Folder of the jobs' scripts, logs and results; not yet there."""
    code: Snapshot

    @property
    def jobs(self) -> list[Job]:
        """Jobs of all batches."""
        return [job for batch in self.batches for job in batch.jobs]

    def parameters(self, batch: Batch, job_ids: Sequence[str] | None = None) -> dict[str, Any]:
        """A batch's parameters for submitit.

        Args:
            job_ids: ids of the batches before it; without them a dependency names the batch.
        """
        ids = job_ids or [f"<file {n} ({other.title})>" for n, other in enumerate(self.batches, 1)]
        waits = [f"{other.type}:{other.job_id or ids[other.batch]}" for other in batch.dependencies]
        return self.cluster.sbatch_parameters(batch.size) | {
            "job_name": batch.jobs[0].name,
            "setup": [*self.cluster.setup, *self.code.setup()],
            "dependency": ",".join(waits) or None,
            "array_parallelism": batch.max_running,
        }

    def script(self, batch: Batch) -> str:
        """The sbatch file of a batch."""
        python = shlex.quote(sys.executable)
        command = f"{python} -u -m submitit.core._submit {shlex.quote(str(self.folder))}"
        parameters = self.parameters(batch)
        if len(batch.jobs) > 1:
            parameters["map_count"] = len(batch.jobs)
        return _make_sbatch_string(command, self.folder, **parameters)


def make_plan(request: SweepRequest, cluster: Cluster, *, copy: bool = True) -> Plan:
    """Plans the jobs of everything that is missing and not yet queued.

    Args:
        copy: take over records that other benchmarks have of the same runs; if not, no file is written.
    """
    check_printable(f"{request.out.resolve()} {request.name}", "path of --out or of the benchmark")
    if "%" in str(request.out.resolve()):
        raise UserError(
            f"out={request.out}: in a path of a job Slurm replaces what follows %; use another"
        )
    pending_cells = list_pending(
        request.name, request.preset, results=request.results, overrides=request.overrides,
        protocols=request.protocols, copy=copy,
    )  # fmt: skip
    jobs = BenchmarkJobs(Ledger(request.out).jobs(), pending_cells)
    runs, notes = _to_submit(pending_cells, jobs, request)
    for pending in itertools.chain.from_iterable(runs):
        check_batches(pending.config, cluster, separately=request.evaluate_separately)
    planner = _Planner(request, cluster, jobs)
    groups: dict[tuple[tuple[Dependency, ...], bool], list[list[PendingCell]]] = {}
    finished = pretrained(request.out, [run[0].cell.config for run in runs])
    for run in runs:
        config = run[0].cell.config
        dependencies = tuple(Dependency("afterany", job.job_id) for job in jobs.live(config.hash))
        trains = config.hash not in finished and any(
            needs_pretraining(pending.config) for pending in run
        )
        if trains:
            dependencies = planner.fit(config) + dependencies
        separately = trains and request.evaluate_separately
        groups.setdefault((dependencies, separately), []).append(run)
    batches = arrays(
        planner.fits,
        [planner.batches(group, *key) for key, group in groups.items()],
        max_size=slurm.max_array_size(),
        max_running=cluster.array,
    )
    return Plan(request, cluster, batches, notes, planner.folder, planner.code)


def _to_submit(
    pending_cells: Sequence[PendingCell], jobs: BenchmarkJobs, request: SweepRequest
) -> tuple[list[list[PendingCell]], list[str]]:
    """The cells to be submitted, those of the same run together, and notes on the others."""
    runs: dict[str, list[PendingCell]] = {}
    num_done, num_live, num_failed = 0, 0, 0
    exclusive: set[str] = set()
    for pending in pending_cells:
        num_done += not pending.missing
        exclusive |= {protocol for protocol in pending.missing if PROTOCOLS[protocol].exclusive}
        remaining = pending.only(exclusive=False)
        states = {
            protocol: jobs.record_state(remaining, protocol).name for protocol in remaining.missing
        }
        num_live += bool({"queued", "running"} & set(states.values()))
        num_failed += "failed" in states.values()
        submitted_states = {"missing", "failed"} if request.retry_failed else {"missing"}
        remaining = remaining.having(
            tuple(name for name, state in states.items() if state in submitted_states)
        )
        if remaining.missing:
            runs.setdefault(remaining.cell.config.hash, []).append(remaining)
    counts = {"done before": num_done, "queued or running already": num_live}
    if not request.retry_failed:
        counts["failed before; --retry-failed submits them again"] = num_failed
    notes = [f"{num} cell{'s' * (num != 1)} {state}" for state, num in counts.items() if num]
    for protocol in sorted(exclusive):
        notes.append(
            f"{protocol}: left out, it needs an idle machine; on one, "
            f"`sweep {request.name} --preset {request.preset} --protocols {protocol}`"
        )
    return list(runs.values()), notes


class _Planner:
    """Builds the jobs of one plan."""

    def __init__(self, request: SweepRequest, cluster: Cluster, jobs: BenchmarkJobs) -> None:
        self.request, self.cluster, self.jobs = request, cluster, jobs
        self.folder = Ledger(request.out).new_folder(Path(request.name).stem)
        self.code = snapshot(request.out)
        self.fits: list[Batch] = []
        self._dependencies: dict[str, tuple[Dependency, ...]] = {}  # on a fit, by its key
        self._cluster_name = slurm.cluster_name()
        self._submitted = datetime.now(UTC).isoformat(timespec="seconds")

    def fit(self, config: RunConfig) -> tuple[Dependency, ...]:
        """Dependency of a run on its target's fit, which becomes a job unless it is there or queued."""
        key = sweep_key(config)
        if key not in self._dependencies:
            dependency: tuple[Dependency, ...] = ()
            if live := self.jobs.live(key):
                dependency = (Dependency("afterok", live[-1].job_id),)
            elif (
                make_target(cost.sized(config)).needs_fit
                and not fitted(self.request.out, config)
                and not self.jobs.is_finished(key)
            ):
                size = self.cluster.single_process
                label = f"fit {config.target.name}, seed {config.seed}"
                job = self._job(size, [config], kind="fit", label=label, seed=None, key=key)
                dependency = (Dependency("afterok", batch=len(self.fits)),)
                self.fits.append(Batch(label, (job,), size))
            self._dependencies[key] = dependency
        return self._dependencies[key]

    def batches(
        self,
        runs: Sequence[Sequence[PendingCell]],
        dependencies: tuple[Dependency, ...],
        separately: bool,
    ) -> list[Batch]:
        """Runs with the same dependencies as one array, or as pre-trainings and their evaluations."""
        size, title = self.cluster, "runs"
        if self.request.evaluate_separately:
            size, title = self.cluster.evaluation, "evaluations"
        batch = Batch(title, tuple(self._run(run, size) for run in runs), size, dependencies)
        if not separately:
            return [batch]
        jobs = tuple(self._run([run[0].having(())], self.cluster) for run in runs)
        return [Batch("pre-trainings", jobs, self.cluster, dependencies), batch]

    def _run(self, pending_cells: Sequence[PendingCell], size: Size) -> Job:
        config = pending_cells[0].cell.config
        missing = [
            (pending.cell.config, name) for pending in pending_cells for name in pending.missing
        ]
        return self._job(
            size, [pending.config for pending in pending_cells],
            kind="run", label="; ".join(pending.cell.label for pending in pending_cells),
            seed=config.seed, key=config.hash,
            protocols=tuple(dict.fromkeys(name for _, name in missing)),
            records=tuple(itertools.starmap(record_hash, missing)),
        )  # fmt: skip

    def _job(self, size: Size, configs: Iterable[RunConfig], **fields: Any) -> Job:
        request = self.request
        home = store.home(request.name, request.preset, request.results.resolve())
        return Job(
            **fields, benchmark=Path(request.name).stem, preset=request.preset,
            overrides=request.overrides, folder=str(self.folder), tasks=size.ranks,
            snapshot=str(self.code.folder), submitted=self._submitted, cluster=self._cluster_name,
            configs=tuple(config.model_dump(mode="json") for config in configs),
            out=str(request.out.resolve()), records_folder=str(home / "records"),
            command=request.command or " ".join(["python -m mim_bench", *sys.argv[1:]]),
            num_threads=size.cpus_per_task,
        )  # fmt: skip
