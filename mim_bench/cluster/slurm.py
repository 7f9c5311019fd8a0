"""Slurm's commands, as far as submitit does not call them itself."""

import os
import shutil
import subprocess
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from mim_bench.cluster.job import Job
from mim_bench.errors import UserError

_DEFAULT_MAX_ARRAY_SIZE = 1001
_CLOCKS_DIFFER = timedelta(minutes=10)
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "PREEMPTED")


def is_here() -> bool:
    """True if this machine has Slurm's commands."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "scancel", "srun"))


def require() -> None:
    """Raises a UserError unless this machine can submit jobs."""
    if not is_here():
        raise UserError(
            "cluster slurm: no `sbatch` on this machine; run this on a login node of the cluster, "
            "add --dry-run to see what would be submitted, or use --cluster local"
        )


def queue(jobs: Collection[Job]) -> dict[str, str]:
    """Id of each job that waits or runs -> why it waits, empty once it has begun; one call of squeue."""
    if not jobs:
        return {}
    process = _call(
        ["squeue", "--noheader", "--array", "--jobs", _arrays(jobs), "-o", "%i|%T|%U|%V|%r|%j"]
    )
    if process.returncode:
        if "Invalid job id" in process.stderr:  # finished so long ago that Slurm has forgotten them
            return {}
        raise UserError(f"squeue: {one_line(process.stderr)}")
    queued = _own_jobs(jobs, process.stdout)
    return {
        job_id: reason or state if state in _WAITING else ""
        for job_id, (state, reason) in queued.items()
    }


def history(jobs: Collection[Job]) -> dict[str, str]:
    """Id of each job that Slurm's accounting knows -> its state; empty where there is no accounting."""
    if not jobs:
        return {}
    fields = "JobID,State,UID,Submit,ExitCode,JobName"
    process = _call(["sacct", "-X", "-n", "-P", "-j", _arrays(jobs), "-o", fields])
    return (
        {}
        if process.returncode
        else {i: state for i, (state, _) in _own_jobs(jobs, process.stdout).items()}
    )


def _arrays(jobs: Collection[Job]) -> str:
    return ",".join(sorted({job.job_id.partition("_")[0] for job in jobs}))


def _own_jobs(jobs: Collection[Job], lines: str) -> dict[str, tuple[str, str]]:
    """`id|state|user|submit time|detail|name` -> state and detail of those that are ours.

    Slurm's ids come round again: a job that has another name or user, or was submitted before ours, is
    somebody else's. (A job that was queued again has a later time.)
    """
    by_id = {job.job_id: job for job in jobs}
    own = {}
    for line in lines.splitlines():
        job_id, *fields = line.split("|", 5)
        job = by_id.get(job_id)
        if job is None or len(fields) < 5:
            continue
        state, user, submitted, detail, name = fields
        if name == job.name and user == str(os.getuid()) and _is_after(submitted, job.submitted):
            own[job_id] = state, detail
    return own


def _is_after(local_time: str, submitted: str) -> bool:
    try:
        time = datetime.fromisoformat(local_time).astimezone()
    except ValueError:
        return False
    return time >= datetime.fromisoformat(submitted) - _CLOCKS_DIFFER


def cancel(job_ids: Sequence[str]) -> None:
    """Ends jobs, waiting or running."""
    if job_ids and (process := _call(["scancel", *job_ids])).returncode:
        raise UserError(f"scancel: {one_line(process.stderr)}")


def max_array_size() -> int:
    """The site's limit on the tasks of an array; without a Slurm, what Slurm has by default."""
    if is_here() and (text := _config("MaxArraySize")):
        return max(1, int(text))
    return _DEFAULT_MAX_ARRAY_SIZE


def cluster_name() -> str:
    """The cluster's name; empty without a Slurm."""
    return _config("ClusterName") if is_here() else ""


def one_line(message: str) -> str:
    """The error message of one of Slurm's commands, without its prefixes."""
    lines = [line.partition("error: ")[2] or line for line in message.strip().splitlines()]
    return "; ".join(line.strip() for line in lines if line.strip()) or "no message"


def _config(name: str) -> str:
    """One value of the site's configuration; empty if it has none."""
    for line in _call(["scontrol", "show", "config"]).stdout.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == name:
            return value.strip()
    return ""


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SLURM_TIME_FORMAT": "standard"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)
