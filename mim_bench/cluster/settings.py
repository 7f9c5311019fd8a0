"""A Slurm cluster as a site has it: where jobs may run, how large one is, what must be set up first.

    python -m mim_bench sweep targets --cluster slurm --partition gpu --nodes 2 --gpus-per-node 8

What is the same for every sweep stands in `cluster.toml` (in the current folder, or `--cluster-file`):

    partition = "gpu"              # each field of `Cluster` below may stand here
    gpus_per_node = 8
    setup = ["module load cuda"]   # shell commands, run at a job's start
    [sbatch]                       # further sbatch options
    exclude = "node17"
    [evaluate]                     # size of evaluation jobs, with --evaluate-apart
    gpus_per_node = 1

Flags beat the file. No site is built in.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from mim_bench.config.resolve import explain
from mim_bench.config.run import RunConfig
from mim_bench.config.trainings import check_shares, trainings
from mim_bench.errors import UserError, suggest
from mim_bench.schema import Frozen

FILE = "cluster.toml"
_OURS = {
    "account", "array", "chdir", "constraint", "cpus-per-task", "dependency", "error", "gpus-per-node",
    "job-name", "kill-on-invalid-dep", "mem", "nodes", "ntasks-per-node", "open-mode", "output",
    "partition", "qos", "requeue", "signal", "time",
}  # fmt: skip
"""Options that have a field of their own, or that submitit or a sweep sets."""


class Size(Frozen):
    """What one job asks for."""

    nodes: int = Field(default=1, ge=1)
    """Machines."""
    gpus_per_node: int | None = Field(default=None, ge=1)
    """GPUs of each machine; unset: none are asked for."""
    tasks_per_node: int | None = Field(default=None, ge=1)
    """Processes on each machine; unset: one a GPU, or 1 without GPUs."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """Cores of each process, which torch then uses; unset: as the site has it."""
    mem_gb: float | None = Field(default=None, gt=0)
    """Memory of each machine, in GB; unset: as the site has it."""
    timeout_hours: float = Field(default=24.0, gt=0)
    """Time limit, in hours; a job that meets it saves, is queued again and goes on."""

    @property
    def ranks_per_node(self) -> int:
        """Processes on each machine."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        """Processes of a job."""
        return self.nodes * self.ranks_per_node

    @property
    def gpus(self) -> int:
        """Devices of a job; without GPUs a process counts as one."""
        return self.nodes * self.gpus_per_node if self.gpus_per_node else self.ranks


class Cluster(Size):
    """A site's settings: `cluster.toml`."""

    partition: str | None = None
    """Where jobs are queued; unset: the site's default."""
    account: str | None = None
    """Whom the time is charged to."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that a node must have, such as `a100`."""
    array: int | None = Field(default=None, ge=1)
    """Jobs of a sweep that run at a time; unset: as many as the site lets."""
    signal_delay_s: int = Field(default=120, ge=1)
    """Seconds before the time limit at which a job is told to save and go."""
    setup: tuple[str, ...] = ()
    """Shell commands at the start of a job, such as `module load cuda`."""
    sbatch: dict[str, str | int | float | bool] = {}
    """Further options of sbatch by their long names; `true` for one without a value."""
    evaluate: Size = Size()
    """Size of evaluation jobs, where these are apart; unset fields as for a job of one process."""

    @field_validator("sbatch")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key.replace("_", "-") in _OURS:
                raise ValueError(f"sbatch.{key}: a field of its own or set by the sweep, not here")
        return {
            key.replace("_", "-"): setting for key, setting in value.items() if setting is not False
        }

    @model_validator(mode="after")
    def _in_time(self) -> "Cluster":
        for size in (self, self.evaluation):
            if self.signal_delay_s >= 3600 * size.timeout_hours:
                raise ValueError(
                    f"signal_delay_s={self.signal_delay_s}: allowed: below the "
                    f"{3600 * size.timeout_hours:g} s of timeout_hours={size.timeout_hours:g}"
                )
        return self

    @property
    def one(self) -> Size:
        """A job of one process with its share of a machine, as a fit is."""
        share = None if self.mem_gb is None else math.ceil(self.mem_gb / self.ranks_per_node)
        return Size(
            gpus_per_node=1 if self.gpus_per_node else None,
            cpus_per_task=self.cpus_per_task,
            mem_gb=share,
            timeout_hours=self.timeout_hours,
        )

    @property
    def evaluation(self) -> Size:
        """An evaluation job, where these are apart."""
        own = self.evaluate.model_dump(exclude_unset=True)
        return Size.model_validate(self.one.model_dump() | own)


def load_cluster(path: Path | None, flags: Mapping[str, Any]) -> tuple[Cluster, Path | None]:
    """The site's settings and the file that they were read from, if there is one.

    Args:
        path: a file as `cluster.toml`; by default that of the current folder, if it has one.
        flags: field -> value, over those of the file.

    Raises:
        UserError: no such file, an unknown field, or a value that is not allowed.
    """
    if path is None and Path(FILE).is_file():
        path = Path(FILE)
    content: dict[str, Any] = {}
    if path is not None:
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"cluster file {path} cannot be read: {error}") from None
        _check_names(path, content, "", Cluster)
        if isinstance(content.get("evaluate"), dict):
            _check_names(path, content["evaluate"], "evaluate.", Size)
    try:
        return Cluster.model_validate(content | dict(flags)), path
    except ValidationError as error:
        raise UserError(f"cluster: {explain(error)}") from None


def _check_names(path: Path, content: Mapping[str, Any], prefix: str, model: type[Frozen]) -> None:
    for key in content:
        if key not in model.model_fields:
            allowed = [f"{prefix}{name}" for name in model.model_fields]
            raise UserError(
                f"{path}: unknown field '{prefix}{key}'; {suggest(prefix + key, allowed)}"
            )


def check_batches(config: RunConfig, cluster: Cluster, *, apart: bool) -> None:
    """That every training's batch can be shared out to the processes of its job.

    Args:
        apart: evaluations are jobs of their own.

    Raises:
        UserError: one cannot.
    """
    for name, section in trainings(config).items():
        size = cluster.evaluation if apart and name != "pretrain" else cluster
        check_shares({name: section}, size.ranks)


def sbatch_parameters(
    cluster: Cluster,
    size: Size,
    *,
    name: str,
    setup: Sequence[str],
    dependency: str | None,
    at_once: int,
) -> dict[str, Any]:
    """What submitit's SlurmExecutor is given, by Slurm's own names.

    Args:
        setup: shell commands after the site's.
        dependency: as sbatch takes it.
        at_once: tasks of an array that run at a time.
    """
    srun = ["--kill-on-bad-exit=1"]  # a rank that dies ends the job
    if size.cpus_per_task:  # since 22.05 srun does not take it over from sbatch
        srun.append(f"--cpus-per-task={size.cpus_per_task}")
    return {
        "job_name": name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": max(1, round(60 * size.timeout_hours)),
        "nodes": size.nodes,
        "ntasks_per_node": size.ranks_per_node,
        "gpus_per_node": size.gpus_per_node,
        "cpus_per_task": size.cpus_per_task,
        "mem": None if size.mem_gb is None else f"{round(1024 * size.mem_gb)}M",
        "signal_delay_s": cluster.signal_delay_s,
        "setup": [*cluster.setup, *setup],
        "dependency": dependency,
        "array_parallelism": at_once,
        "wckey": None,
        "srun_args": srun,
        # a run that waits for a failed fit would wait for ever
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **cluster.sbatch},
    }
