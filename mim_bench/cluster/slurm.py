"""Slurm's commands, as far as submitit does not call them itself."""

import shutil
import subprocess
from collections.abc import Collection, Sequence

from mim_bench.errors import UserError

_DEFAULT_MAX_ARRAY_SIZE = 1001
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "PREEMPTED")


def is_here() -> bool:
    """Whether this machine has Slurm's commands."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "scancel", "srun"))


def require() -> None:
    """Raises a UserError unless this machine can submit jobs."""
    if not is_here():
        raise UserError(
            "cluster slurm: no `sbatch` on this machine; run this on a login node of the cluster, "
            "add --dry-run to see what would be submitted, or use --cluster local"
        )


def queue(job_ids: Collection[str]) -> dict[str, str]:
    """Id of each job that waits or runs -> why it waits, empty once it has begun; one call of squeue."""
    if not job_ids:
        return {}
    arrays = sorted({job_id.partition("_")[0] for job_id in job_ids})
    done = _call(["squeue", "--noheader", "--array", "--jobs", ",".join(arrays), "-o", "%i|%T|%r"])
    if done.returncode:
        if "Invalid job id" in done.stderr:  # finished so long ago that Slurm has forgotten them
            return {}
        raise UserError(f"squeue: {one_line(done.stderr)}")
    queued = {}
    for line in done.stdout.splitlines():
        job_id, state, reason = line.split("|", 2)
        if job_id in job_ids:
            queued[job_id] = reason or state if state in _WAITING else ""
    return queued


def cancel(job_ids: Sequence[str]) -> None:
    """Ends jobs, waiting or running."""
    if job_ids and (done := _call(["scancel", *job_ids])).returncode:
        raise UserError(f"scancel: {one_line(done.stderr)}")


def max_array_size() -> int:
    """The site's limit on the tasks of an array; without a Slurm, what Slurm has by default."""
    if is_here():
        done = _call(["scontrol", "show", "config"])
        for line in done.stdout.splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "MaxArraySize":
                return max(1, int(value))
    return _DEFAULT_MAX_ARRAY_SIZE


def one_line(message: str) -> str:
    """The error message of one of Slurm's commands, without its prefixes."""
    lines = [line.partition("error: ")[2] or line for line in message.strip().splitlines()]
    return "; ".join(line.strip() for line in lines if line.strip()) or "no message"


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)
