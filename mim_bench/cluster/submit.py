"""Handing a benchmark's missing cells to Slurm, through submitit.

    python -m mim_bench sweep targets --preset imagenet --cluster slurm --partition gpu --gpus-per-node 8

Asked again it submits only what is missing and neither waits nor runs. What was handed over is in the ledger
(`mim_bench.cluster.ledger`); with --dry-run the same sbatch files are only shown.
"""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError, environment_variables
from submitit.helpers import clean_env

from mim_bench.cluster import slurm
from mim_bench.cluster.batch import Batch, Wait
from mim_bench.cluster.ledger import Entry, Ledger
from mim_bench.cluster.settings import Cluster
from mim_bench.cluster.submission import Asked, Submission, submission
from mim_bench.errors import UserError

_MAX_NUM_TIMEOUT = {"run": 1000, "fit": 1}
"""Time limits that a job may meet and be queued again: a training of weeks meets many and goes on after each,
a fit begins anew."""


def submit(asked: Asked, cluster: Cluster) -> Submission:
    """Hands everything that is missing to Slurm; what was handed over is in the ledger at once.

    Raises:
        UserError: there is no Slurm here, or it refuses a job; what went before is queued and in the ledger.
    """
    slurm.require()
    ledger = Ledger(asked.out)
    with ledger.lock():
        made = submission(asked, cluster)
        if not made.batches:
            return made
        made.code.write()
        job_ids: list[str] = []
        for batch in made.batches:
            entries = _hand_over(made, batch, job_ids)
            ledger.append(entries)
            job_ids.append(entries[0].job_id.partition("_")[0])
    return made


def _hand_over(made: Submission, batch: Batch, job_ids: Sequence[str]) -> list[Entry]:
    num_timeouts = _MAX_NUM_TIMEOUT[batch.parts[0].entry.kind]
    executor = SlurmExecutor(made.folder, max_num_timeout=num_timeouts)
    executor.update_parameters(**made.parameters(batch, job_ids))
    with _quietly(), _outside_any_job():
        try:
            with executor.batch():
                jobs = [executor.submit(part.work) for part in batch.parts]
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"sbatch refuses {batch.title}: {slurm.one_line(str(error))}") from None
    entries = []
    for place, (part, job) in enumerate(zip(batch.parts, jobs, strict=True)):
        needs = tuple(
            _needed(wait, made.batches, job_ids, place)
            for wait in batch.waits
            if wait.how != "afterany"
        )
        entries.append(part.entry.model_copy(update={"job_id": job.job_id, "needs": needs}))
    return entries


def _needed(wait: Wait, batches: Sequence[Batch], job_ids: Sequence[str], place: int) -> str:
    """Id of the job that a batch's task waits for."""
    if wait.job_id:
        return wait.job_id
    is_array = len(batches[wait.batch].parts) > 1
    return f"{job_ids[wait.batch]}_{place}" if is_array else job_ids[wait.batch]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """submitit prints what sbatch says on stderr; the error that it raises says the same."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _outside_any_job() -> Iterator[None]:
    """Jobs do not inherit the settings of a job that this may run in, but which cluster it is."""
    which = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env(), environment_variables(**which):
        yield
