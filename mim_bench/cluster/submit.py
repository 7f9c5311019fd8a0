"""Submits a benchmark's missing cells to Slurm, through submitit.

    python -m mim_bench sweep targets --preset imagenet --cluster slurm --partition gpu --gpus-per-node 8

The same command again submits only what is missing and neither waits nor runs. Submitted jobs are in the ledger
(`mim_bench.cluster.ledger`); with --dry-run the same sbatch files are only shown.
"""

import contextlib
import io
import os
from collections.abc import Sequence

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError, environment_variables
from submitit.helpers import clean_env

from mim_bench.cluster import slurm
from mim_bench.cluster.job import Job
from mim_bench.cluster.ledger import Ledger
from mim_bench.cluster.plan import Batch, Plan, make_plan
from mim_bench.cluster.settings import Cluster
from mim_bench.errors import UserError
from mim_bench.experiment.request import SweepRequest

_MAX_NUM_TIMEOUT = {"run": 1000, "fit": 1}
"""Time limits that a job may meet and be queued again: a training of weeks meets many and goes on after each,
a fit begins anew."""


def submit(request: SweepRequest, cluster: Cluster) -> Plan:
    """Submits everything that is missing; each batch is in the ledger as soon as Slurm has it."""
    slurm.require()
    ledger = Ledger(request.out)
    with ledger.lock():
        plan = make_plan(request, cluster)
        if plan.batches:
            plan.code.write()
        job_ids: list[str] = []
        for batch in plan.batches:
            jobs = _submit_batch(plan, batch, job_ids)
            ledger.append(jobs)
            job_ids.append(jobs[0].job_id.partition("_")[0])
    return plan


def _submit_batch(plan: Plan, batch: Batch, job_ids: Sequence[str]) -> list[Job]:
    executor = SlurmExecutor(plan.folder, max_num_timeout=_MAX_NUM_TIMEOUT[batch.jobs[0].kind])
    executor.update_parameters(**plan.parameters(batch, job_ids))
    # jobs do not inherit the settings of a job that this may run in, but which cluster it is
    which = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    # submitit prints what sbatch says on stderr; the error that it raises says the same
    with contextlib.redirect_stderr(io.StringIO()), clean_env(), environment_variables(**which):
        try:
            with executor.batch():
                queued = [executor.submit(job) for job in batch.jobs]
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"sbatch refuses {batch.title}: {slurm.one_line(str(error))}") from None
    jobs = []
    for number, (job, handle) in enumerate(zip(batch.jobs, queued, strict=True)):
        needs = []
        for dependency in batch.dependencies:
            if dependency.type == "afterany":
                continue
            job_id = dependency.job_id or job_ids[dependency.batch]
            if not dependency.job_id and len(plan.batches[dependency.batch].jobs) > 1:
                job_id += f"_{number}"
            needs.append(job_id)
        jobs.append(job.model_copy(update={"job_id": handle.job_id, "needs": tuple(needs)}))
    return jobs
