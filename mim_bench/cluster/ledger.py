"""The jobs that were handed to a cluster: `<out>/cluster/jobs.jsonl`, one line a job, only ever appended to.

It says which job makes which records, so that nothing is queued twice, and where the job's log lies. How a
job fares is not in it: that is asked of Slurm (see `mim_bench.cluster.job_state`).
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout  # the cross-platform lock that torch itself depends on
from pydantic import ValidationError

from mim_bench.errors import UserError
from mim_bench.schema import Frozen


class Entry(Frozen):
    """One job, or one task of an array."""

    kind: Literal["fit", "run"]
    benchmark: str
    """Its name; of a file, the stem."""
    preset: str
    overrides: tuple[str, ...]
    """As they were given to the sweep."""
    label: str
    """`hog`, or what a fit is for."""
    seed: int | None
    """Unset for a fit, which all seeds share."""
    key: str
    """Hash of the run, or of what a fit depends on."""
    protocols: tuple[str, ...] = ()
    """What it evaluates; empty: it only pre-trains or fits."""
    records: tuple[str, ...] = ()
    """Hash of all that a protocol's numbers depend on, one a protocol."""
    needs: tuple[str, ...] = ()
    """Ids of the jobs without whose success it cannot start."""
    job_id: str
    """Slurm's; of a task of an array `<array>_<task>`."""
    folder: str
    """Where submitit keeps its script, log and result."""
    tasks: int
    """Number of processes."""
    snapshot: str
    """Folder of the code that it runs."""
    submitted: str
    """ISO 8601, UTC."""


class Ledger:
    """The ledger of a folder of run folders."""

    def __init__(self, out: Path) -> None:
        self.folder = out.resolve() / "cluster"
        self.path = self.folder / "jobs.jsonl"

    def entries(self) -> list[Entry]:
        """All jobs, oldest first.

        Raises:
            UserError: a line is damaged.
        """
        if not self.path.is_file():
            return []
        found = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                found.append(Entry.model_validate_json(line))
            except ValidationError as error:
                raise UserError(
                    f"{self.path}, line {number} is damaged: {error.errors()[0]['msg']}"
                ) from None
        return found

    def append(self, entries: Iterable[Entry]) -> None:
        """Adds jobs; the caller holds the lock."""
        lines = "".join(entry.model_dump_json() + "\n" for entry in entries)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(lines)

    def lock(self) -> AbstractContextManager[object]:
        """Held while jobs are handed over, so that two sweeps at a time do not queue the same.

        Raises:
            UserError: another sweep has it, and for long.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(f"{self.path}.lock").acquire(timeout=60)
        except Timeout:
            raise UserError(f"another sweep is handing over jobs ({self.path})") from None

    def new_folder(self, benchmark: str) -> Path:
        """The folder for the jobs of the next submission, not yet there."""
        number = 1
        while (found := self.folder / f"{benchmark}-{number}").exists():
            number += 1
        return found
