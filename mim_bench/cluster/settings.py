"""A Slurm cluster as a site has it: where jobs may run, how large one is, what must be set up first.

    python -m mim_bench sweep targets --cluster slurm --partition gpu --nodes 2 --gpus-per-node 8

What is the same for every sweep stands in `cluster.toml` (in the current folder, or `--cluster-file`):

    partition = "gpu"              # each field of `Cluster` below may stand here
    gpus_per_node = 8
    setup = ["module load cuda"]   # shell commands, run at a job's start
    [sbatch]                       # further sbatch options
    exclude = "node17"
    [evaluate]                     # size of evaluation jobs, with --evaluate-separately
    gpus_per_node = 1

Flags beat the file, and `cluster.nodes=2` on the command line beats both. No site is built in.
"""

import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from mim_bench.config.resolve import explain, fields, flatten, parse_value, split_override
from mim_bench.config.run import RunConfig
from mim_bench.config.trainings import check_local_batches, trainings
from mim_bench.errors import UserError, check_printable, suggest
from mim_bench.schema import Frozen

FILE = "cluster.toml"
PREFIX = "cluster."
"""Prefix of overrides on the command line that are settings of the cluster."""
_OURS = {
    "account", "array", "chdir", "constraint", "cpus-per-task", "dependency", "error", "gpus-per-node",
    "job-name", "kill-on-invalid-dep", "mem", "nodes", "ntasks-per-node", "open-mode", "output",
    "partition", "qos", "requeue", "signal", "time",
}  # fmt: skip
"""Options that have a field of their own, or that submitit or a sweep sets."""


_LONG = {
    "A": "account", "C": "constraint", "G": "gpus_per_node", "J": "nothing, the sweep names its jobs",
    "N": "nodes", "c": "cpus_per_task", "e": "nothing, the sweep keeps logs", "n": "tasks_per_node",
    "o": "nothing, the sweep keeps logs", "p": "partition", "q": "qos", "t": "timeout_hours",
    "w": "sbatch.nodelist", "x": "sbatch.exclude",
}  # fmt: skip
"""Short option of sbatch -> what to write here."""


class Size(Frozen):
    """Resources of one job."""

    nodes: int = Field(default=1, ge=1)
    """Machines."""
    gpus_per_node: int | None = Field(default=None, ge=1)
    """GPUs of each machine; unset: none are requested."""
    tasks_per_node: int | None = Field(default=None, ge=1)
    """Processes on each machine; unset: one a GPU, or 1 without GPUs."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """Cores of each process, which torch then uses; unset: the site's default."""
    mem_gb: float | None = Field(default=None, gt=0)
    """Memory of each machine, in GB; unset: the site's default."""
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
    """Partition in which jobs are queued; unset: the site's default."""
    account: str | None = None
    """Whom the time is charged to."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that a node must have, such as `a100`."""
    array: int | None = Field(default=None, ge=1)
    """Jobs of a sweep that run at a time; unset: the site's limit."""
    signal_delay_s: int = Field(default=120, ge=1)
    """Seconds before the time limit at which a job is signalled to save and stop."""
    setup: tuple[str, ...] = ()
    """Shell commands at the start of a job, such as `module load cuda`."""
    sbatch: dict[str, str | int | float | bool] = {}
    """Further options of sbatch by their long names; `true` for one without a value."""
    evaluate: Size = Size()
    """Size of evaluation jobs, where these are separate; unset fields as for a job of one process."""

    @field_validator("partition", "account", "qos", "constraint", "setup", "sbatch")
    @classmethod
    def _one_line(cls, value: Any) -> Any:
        """Each value is a line of the sbatch file: one with a break in it would be a line of its own."""
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        for text in [parts] if isinstance(parts, str) else parts or ():
            if isinstance(text, str):
                check_printable(text, "a value of the cluster's settings")
        return value

    @field_validator("sbatch")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        value = {key.lstrip("-"): setting for key, setting in value.items()}
        for key in value:
            if len(key) == 1:
                name = _LONG.get(key, "its long name")
                raise ValueError(f"sbatch.{key}: short options are not read; use {name}")
            if key.replace("_", "-") in _OURS:
                raise ValueError(f"sbatch.{key}: a field of its own or set by the sweep, not here")
        return {
            key.replace("_", "-"): setting for key, setting in value.items() if setting is not False
        }

    @model_validator(mode="after")
    def _a_process_a_gpu(self) -> "Cluster":
        for key in ("gres", "gpus", "gpus-per-task"):
            text = str(self.sbatch.get(key, ""))
            if not text or (key == "gres" and "gpu" not in text):
                continue
            match = re.search(r"gpu(?::[a-z][\w-]*)?:(\d+)|^(\d+)$|:(\d+)$", text)
            number = int(next(filter(None, match.groups()))) if match else 1
            processes = self.ranks if key == "gpus" else self.ranks_per_node if key == "gres" else 1
            if number != processes:
                raise ValueError(
                    f"sbatch.{key}={text}: {number} GPUs for {processes} process{'es' * (processes > 1)}, each of "
                    f"which takes one; use gpus_per_node={number}, or tasks_per_node={number} with it"
                )
        return self

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
    def single_process(self) -> Size:
        """Size of a job of one process, such as a fit, with its fraction of a machine's memory."""
        mem_gb = None if self.mem_gb is None else math.ceil(self.mem_gb / self.ranks_per_node)
        return Size(
            gpus_per_node=1 if self.gpus_per_node else None,
            cpus_per_task=self.cpus_per_task,
            mem_gb=mem_gb,
            timeout_hours=self.timeout_hours,
        )

    @property
    def evaluation(self) -> Size:
        """Size of a separate evaluation job."""
        overrides = self.evaluate.model_dump(exclude_unset=True)
        return Size.model_validate(self.single_process.model_dump() | overrides)

    def sbatch_parameters(self, size: Size) -> dict[str, Any]:
        """Parameters of submitit's SlurmExecutor for jobs of a size, by Slurm's own names."""
        srun = ["--kill-on-bad-exit=1"]  # a rank that dies ends the job
        if size.cpus_per_task:  # since 22.05 srun does not take it over from sbatch
            srun.append(f"--cpus-per-task={size.cpus_per_task}")
        of_site = {"partition", "account", "qos", "constraint", "signal_delay_s"}
        return {
            **self.model_dump(include=of_site),
            **size.model_dump(include={"nodes", "gpus_per_node", "cpus_per_task"}),
            "ntasks_per_node": size.ranks_per_node,
            "mem": None if size.mem_gb is None else f"{round(1024 * size.mem_gb)}M",
            "time": max(1, round(60 * size.timeout_hours)),
            "wckey": None,
            "srun_args": srun,
            # a run that waits for a failed fit would wait for ever
            "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **self.sbatch},
        }


def load_cluster(path: Path | None, overrides: Sequence[str]) -> tuple[Cluster, Path | None]:
    """The site's settings and the file that they were read from, if there is one.

    Args:
        path: a file as `cluster.toml`; by default that of the current folder, if it has one.
        overrides: `cluster.nodes=2`, over those of the file; `cluster.sbatch.exclude=n1` for sbatch's own.
    """
    if path is None and Path(FILE).is_file():
        path = Path(FILE)
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = flatten(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"cluster file {path} cannot be read: {error}") from None
    settings = dict(split_override(text.removeprefix(PREFIX)) for text in overrides)
    leaves = fields(Cluster)
    for origin, prefix, keys in ((path, "", values), ("command line", PREFIX, settings)):
        for key in keys:
            if key not in leaves and not key.startswith("sbatch."):
                hint = suggest(prefix + key, [prefix + leaf for leaf in leaves])
                raise UserError(f"{origin}: unknown field '{prefix}{key}'; {hint}")
    values |= {key: parse_value(text, leaves.get(key, Any)) for key, text in settings.items()}
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name:
            nested.setdefault(section, {})[name] = value
        else:
            nested[key] = value
    try:
        return Cluster.model_validate(nested), path
    except ValidationError as error:
        raise UserError(f"cluster: {explain(error)}") from None


def check_batches(config: RunConfig, cluster: Cluster, *, separately: bool) -> None:
    """Checks that every training's batch can be split over the processes of its job, else a UserError.

    Args:
        separately: evaluations are jobs of their own.
    """
    for name, section in trainings(config).items():
        size = cluster.evaluation if separately and name != "pretrain" else cluster
        check_local_batches({name: section}, size.ranks)
