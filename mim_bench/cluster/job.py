"""A job on a cluster: the training of one run, its evaluation or both, or the fit of one target.

A job holds plain values only, is pickled by reference and carries no state: started again, be it after its
time limit, a preemption or the failure of a node, it goes on from what lies in the run's folder. The submitter
is gone, so the job puts its records into the results itself. torch is imported in the call, not before:
until submitit has loaded the job a signal to save would end it.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import submitit
from pydantic import Field
from submitit.core.utils import DelayedSubmission, UncompletedJobError
from submitit.helpers import TorchDistributedEnvironment

from mim_bench.schema import Frozen

if TYPE_CHECKING:
    from mim_bench.config.run import RunConfig
    from mim_bench.experiment.run import Stages
    from mim_bench.train.loop import Report

_SECONDS_BETWEEN_WRITES = 1.0


class Job(Frozen):
    """One job, or one task of an array; without the fields that it is called with, a line of the ledger."""

    kind: Literal["fit", "run"]
    benchmark: str
    """Name of the benchmark; of a file, the stem."""
    preset: str
    overrides: tuple[str, ...]
    """Overrides as they were given to the sweep."""
    label: str
    """`hog`, or the target of a fit."""
    seed: int | None
    """Unset for a fit, which all seeds use."""
    key: str
    """Hash of the run, or of everything that a fit depends on."""
    protocols: tuple[str, ...] = ()
    """Protocols that it evaluates; empty: it only pre-trains or fits."""
    records: tuple[str, ...] = ()
    """Hash of all that a protocol's numbers depend on, one for each protocol."""
    needs: tuple[str, ...] = ()
    """Ids of the jobs without whose success it cannot start."""
    job_id: str = ""
    """Slurm's; of a task of an array `<array>_<task>`; empty before the submission."""
    folder: str
    """Folder in which submitit keeps the job's script, log and result."""
    cluster: str = ""
    """Name of the cluster; empty where Slurm gave none."""
    tasks: int
    """Number of processes."""
    snapshot: str
    """Folder of the code that it runs."""
    submitted: str
    """ISO 8601, UTC."""

    configs: tuple[dict[str, Any], ...] = Field(default=(), exclude=True)
    """Configs of one run; several where cells differ in its evaluation only."""
    out: str = Field(default="", exclude=True)
    """Folder of run folders, absolute."""
    records_folder: str = Field(default="", exclude=True)
    """Folder of the benchmark's records, absolute."""
    command: str = Field(default="", exclude=True)
    """Command line that records name as their origin."""
    num_threads: int | None = Field(default=None, exclude=True)
    """Threads of torch's CPU operations; unset: torch's default."""

    @property
    def name(self) -> str:
        """Name that Slurm shows."""
        return f"mim_bench-{self.benchmark}"

    @property
    def title(self) -> str:
        """Cells and protocols, for people."""
        if self.kind == "fit":
            return self.label
        return (
            f"{self.label}, seed {self.seed}: {', '.join(self.protocols) or 'pre-training alone'}"
        )

    def __call__(self) -> str:
        """Returns the run's folder, or the path of the fitted state. Every process of the job calls it."""
        with _in_job(self.configs[0], self.num_threads) as stages:
            from mim_bench.config.resolve import validated

            configs = list(map(validated, self.configs))
            return (
                self._fit(configs[0], stages) if self.kind == "fit" else self._run(configs, stages)
            )

    def checkpoint(self) -> DelayedSubmission:
        """The job that submitit queues again: the same."""
        return DelayedSubmission(self)

    def _run(self, configs: Sequence["RunConfig"], stages: "Stages") -> str:
        """Pre-trains and evaluates. A cell that fails does not stop the others of the run."""
        from mim_bench.train.distributed import size

        folder, failure = "", None
        for config in configs:
            try:
                folder = self._cell(config, stages) or folder
            except UncompletedJobError:  # preempted, and not queued again
                raise
            except Exception as error:
                if size() > 1:  # the other processes may be anywhere
                    raise
                failure = failure or error
        if failure is not None:
            raise failure
        return folder

    def _cell(self, config: "RunConfig", stages: "Stages") -> str | None:
        from mim_bench.experiment.run import execute
        from mim_bench.records import store
        from mim_bench.records.pending import lacking
        from mim_bench.train.distributed import on_main

        records = Path(self.records_folder)
        if config.evaluate.protocols:  # another job may have written some meanwhile
            missing = on_main(lambda: lacking(config, records))
            if not missing:
                return None
            evaluate = config.evaluate.model_copy(update={"protocols": missing})
            config = config.model_copy(update={"evaluate": evaluate})
        result = execute(config, out=self.out, stages=stages, command=self.command)
        on_main(lambda: store.keep(result.folder, result.records, records))
        return str(result.folder)

    def _fit(self, config: "RunConfig", stages: "Stages") -> str:
        """Fits the target to the training images, for all runs that use it."""
        from mim_bench.data.run_data import complete, open_data
        from mim_bench.records.run_folder import fit_path
        from mim_bench.train.environment import choose_device
        from mim_bench.train.fit import fitted_target

        device = choose_device(config.runtime.device)
        with stages.stage("read images"):
            data = open_data(config, device)
        config = complete(config, data)
        with stages.stage(f"fit {config.target.name}"):
            fitted = fitted_target(config, data, Path(self.out), device)
        return str(fit_path(Path(self.out), config, fitted.key or ""))


@contextmanager
def _in_job(config: dict[str, Any], num_threads: int | None) -> Iterator["Stages"]:
    """All processes of the job as one, a preemption signal held back, progress written by the first."""
    environment = submitit.JobEnvironment()
    alone = environment.num_tasks == 1
    if not alone:
        # every process sees all GPUs of its node and takes the one of its local rank
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    import torch

    from mim_bench.train import distributed, preemption
    from mim_bench.train.progress import Quiet

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    minutes = config["runtime"]["timeout_minutes"]
    with nullcontext() if alone else distributed.joined(minutes), preemption.deferred():
        paths = environment.paths
        for pickle in (paths.submitted_pickle, paths.result_pickle):
            # of an attempt that was killed while it wrote; submitit would stumble over it
            pickle.with_name(f"{pickle.name}.save_tmp").unlink(missing_ok=True)
        path = progress_path(paths.folder, environment.job_id)
        yield ProgressFile(path) if distributed.is_main() else Quiet()


def progress_path(folder: Path, job_id: str) -> Path:
    """File of a job's progress."""
    return folder / f"{job_id}_progress.json"


class ProgressFile:
    """Reports a job's progress in one small file, replaced at most once a second."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def stage(self, name: str) -> "Iterator[Report]":
        """A stage; see `mim_bench.train.progress`."""
        began: list[tuple[float, int]] = []  # time and step of the first report
        last = time.time()
        self._write(stage=name)

        def report(done_steps: int, num_steps: int, images_per_s: float, loss: float) -> None:
            nonlocal last
            now = time.time()
            began[:] = began or [(now, done_steps)]
            if now - last < _SECONDS_BETWEEN_WRITES and done_steps < num_steps:
                return
            last = now
            seconds, steps = now - began[0][0], done_steps - began[0][1]
            seconds_left = round(seconds / steps * (num_steps - done_steps), 1) if steps else None
            self._write(
                stage=name, done_steps=done_steps, num_steps=num_steps,
                images_per_s=round(images_per_s, 1), loss=loss, seconds_left=seconds_left,
            )  # fmt: skip

        yield report

    def _write(self, **content: object) -> None:
        from mim_bench.files import write_text

        write_text(self.path, json.dumps({**content, "time": time.time()}) + "\n")
