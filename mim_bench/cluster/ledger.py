"""The jobs that were submitted to a cluster: `<out>/cluster/jobs.jsonl`, one line a job, only ever appended to.

It says which job writes which records, so that nothing is queued twice, and where the job's log lies. The
state of a job is not in it: Slurm knows it (see `mim_bench.cluster.state`).
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout  # the cross-platform lock that torch itself depends on
from pydantic import ValidationError

from mim_bench.cluster import slurm
from mim_bench.cluster.job import Job
from mim_bench.errors import UserError


class Ledger:
    """The ledger of a folder of run folders."""

    def __init__(self, out: Path) -> None:
        self.folder = out.resolve() / "cluster"
        self.path = self.folder / "jobs.jsonl"

    def jobs(self) -> list[Job]:
        """All jobs, oldest first; of an id that has come round again the newest alone.

        Raises UserError for a damaged line, and for a job of another cluster that has left no result.
        """
        if not self.path.is_file():
            return []
        jobs: dict[str, Job] = {}
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                job = Job.model_validate_json(line)
            except ValidationError as error:
                raise UserError(
                    f"{self.path}, line {number} is damaged: {error.errors()[0]['msg']}"
                ) from None
            jobs.pop(job.job_id, None)
            jobs[job.job_id] = job
        cluster = slurm.cluster_name() if any(job.cluster for job in jobs.values()) else ""
        for job in jobs.values():
            if (
                cluster
                and job.cluster not in ("", cluster)
                and not list(Path(job.folder).glob(f"{job.job_id}_*_result.pkl"))
            ):
                raise UserError(
                    f"{self.path}: job {job.job_id} was submitted on the cluster {job.cluster}, this is {cluster}; "
                    "use another --out here"
                )
        return list(jobs.values())

    def append(self, jobs: Iterable[Job]) -> None:
        """Adds jobs; the caller holds the lock."""
        lines = "".join(job.model_dump_json() + "\n" for job in jobs)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(lines)

    def lock(self) -> AbstractContextManager[object]:
        """Held while jobs are submitted, so that two sweeps at a time do not queue the same."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(f"{self.path}.lock").acquire(timeout=60)
        except Timeout:
            raise UserError(f"another sweep is submitting jobs ({self.path})") from None

    def new_folder(self, benchmark: str) -> Path:
        """The folder for the jobs of the next submission, not yet there."""
        number = 1
        while (folder := self.folder / f"{benchmark}-{number}").exists():
            number += 1
        return folder
