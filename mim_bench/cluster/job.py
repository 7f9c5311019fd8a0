"""What a job on a cluster calls: one run, or the fit of one target.

A job holds plain values only, is pickled by reference and carries no state: started again, be it after its
time limit, a preemption or the failure of a node, it goes on from what lies in the run's folder. The submitter
is gone, so the job puts its records into the results itself. torch is imported in the call, not before:
until submitit has loaded the job a signal to save would end it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import submitit
from submitit.core.utils import DelayedSubmission, UncompletedJobError
from submitit.helpers import TorchDistributedEnvironment

if TYPE_CHECKING:
    from mim_bench.config.run import RunConfig
    from mim_bench.experiment.run import Stages
    from mim_bench.train.loop import Report

_SECONDS_BETWEEN_WRITES = 1.0


@dataclass(frozen=True)
class RunJob:
    """Pre-trains and evaluates one run. Every process of the job calls it."""

    configs: tuple[dict[str, Any], ...]
    """Of one run; several where cells differ in its evaluation only."""
    out: str
    """Folder of run folders, absolute."""
    records: str
    """Folder of the benchmark's records, absolute."""
    command: str
    """What records name as their origin."""
    num_threads: int | None = None
    """Of torch's CPU operations; unset: as torch finds it."""

    def __call__(self) -> str:
        """Returns the run's folder. A cell that fails does not stop the others of the run."""
        folder, failed = "", None
        with _in_job(self.configs[0], self.num_threads) as stages:
            from mim_bench.config.resolve import validated
            from mim_bench.train.distributed import size

            for config in map(validated, self.configs):
                try:
                    folder = self._run(config, stages) or folder
                except UncompletedJobError:  # told to leave, and not queued again
                    raise
                except Exception as error:
                    if size() > 1:  # the other processes may be anywhere
                        raise
                    failed = failed or error
        if failed is not None:
            raise failed
        return folder

    def _run(self, config: "RunConfig", stages: "Stages") -> str | None:
        from mim_bench.experiment.run import execute
        from mim_bench.records import store
        from mim_bench.records.pending import lacking
        from mim_bench.train.distributed import from_main

        records = Path(self.records)
        if config.evaluate.protocols:  # another job may have made some meanwhile
            missing = from_main(lambda: lacking(config, records))
            if not missing:
                return None
            evaluate = config.evaluate.model_copy(update={"protocols": missing})
            config = config.model_copy(update={"evaluate": evaluate})
        result = execute(config, out=self.out, stages=stages, command=self.command)
        from_main(lambda: store.keep(result.folder, result.records, records))
        return str(result.folder)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again: the same."""
        return DelayedSubmission(self)


@dataclass(frozen=True)
class FitJob:
    """Fits a target to the training images, for all runs that share it."""

    config: dict[str, Any]
    """Of any of the runs."""
    out: str
    """Folder of run folders, absolute."""
    num_threads: int | None = None
    """Of torch's CPU operations; unset: as torch finds it."""

    def __call__(self) -> str:
        """Returns the path of the fitted state."""
        with _in_job(self.config, self.num_threads) as stages:
            from mim_bench.config.resolve import validated
            from mim_bench.data.run_data import complete, open_data
            from mim_bench.records.run_folder import fit_path
            from mim_bench.train.environment import choose_device
            from mim_bench.train.fit import fitted_target

            config = validated(self.config)
            device = choose_device(config.runtime.device)
            with stages.stage("read images"):
                data = open_data(config, device)
            config = complete(config, data)
            with stages.stage(f"fit {config.target.name}"):
                fitted = fitted_target(config, data, Path(self.out), device)
            return str(fit_path(Path(self.out), config, fitted.key or ""))

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again: the same."""
        return DelayedSubmission(self)


@contextmanager
def _in_job(config: dict[str, Any], num_threads: int | None) -> Iterator["Stages"]:
    """All processes of the job as one, a signal to leave held back, progress written by the first."""
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
            # left by an attempt that was killed while it wrote; submitit would stumble over it
            pickle.with_name(f"{pickle.name}.save_tmp").unlink(missing_ok=True)
        path = progress_path(paths.folder, environment.job_id)
        yield ProgressFile(path) if distributed.is_main() else Quiet()


def progress_path(folder: Path, job_id: str) -> Path:
    """Where a job tells how far it is."""
    return folder / f"{job_id}_progress.json"


class ProgressFile:
    """Tells how far a job is: one small file, replaced at most once a second."""

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
            self._write(
                stage=name,
                done_steps=done_steps,
                num_steps=num_steps,
                images_per_s=round(images_per_s, 1),
                loss=loss,
                seconds_left=round(seconds / steps * (num_steps - done_steps), 1)
                if steps
                else None,
            )

        yield report

    def _write(self, **content: object) -> None:
        from mim_bench.files import write_text

        write_text(self.path, json.dumps({**content, "time": time.time()}) + "\n")
