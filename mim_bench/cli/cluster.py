"""The verbs on a cluster's jobs, status and cancel, and what `sweep --cluster slurm` does."""

import functools
import inspect
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mim_bench.cli.options import Out, Overrides, print_line, print_lines
from mim_bench.cores import num_cores
from mim_bench.errors import UserError, suggest

if TYPE_CHECKING:
    from mim_bench.cluster.job import Job
    from mim_bench.cluster.plan import Plan
    from mim_bench.cluster.settings import Cluster
    from mim_bench.experiment.request import SweepRequest

app = typer.Typer()

CLUSTERS = ("slurm", "local", "debug")
_PANEL = "On a cluster (--cluster slurm); also in cluster.toml, or as cluster.nodes=2"

Name = Annotated[str, typer.Argument(help="Benchmark; see `list benchmarks`.")]
Results = Annotated[Path, typer.Option(help="Folder of records, tables and figures.")]
LastPreset = Annotated[
    str | None,
    typer.Option(help="Preset; by default that of the last sweep on a cluster, with its settings."),
]

ClusterName = Annotated[
    str | None,
    typer.Option(
        help="slurm: a job a run, through submitit; local: processes of this machine; debug: this process."
    ),
]


def _site(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=_PANEL)


ClusterFile = Annotated[
    Path | None, _site("Site settings; by default ./cluster.toml if it is there.")
]
RetryFailed = Annotated[bool, _site("Submit failed cells again.", "--retry-failed")]
EvaluateSeparately = Annotated[
    bool,
    _site("Evaluations are jobs of their own, after the pre-trainings.", "--evaluate-separately"),
]
EvaluateApart = Annotated[bool, typer.Option("--evaluate-apart", hidden=True)]
"""The former name of --evaluate-separately."""

_FLAGS: dict[str, tuple[type, str]] = {
    "partition": (str, "Where jobs are queued."),
    "account": (str, "Whom the time is charged to."),
    "qos": (str, "Quality of service."),
    "constraint": (str, "Features that a node must have."),
    "nodes": (int, "Machines of a job."),
    "gpus_per_node": (int, "GPUs of each machine."),
    "tasks_per_node": (int, "Processes on each machine; by default one a GPU."),
    "cpus_per_task": (int, "Cores of each process."),
    "mem_gb": (float, "Memory of each machine, in GB."),
    "timeout_hours": (float, "Time limit of a job, in hours."),
    "array": (int, "Jobs that run at a time."),
}
"""Field of the cluster's settings that is also a flag -> its type and help."""


def with_cluster_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """Adds a flag for each field of `_FLAGS` to a verb: `--nodes 2` comes as the override `cluster.nodes=2`."""

    @functools.wraps(verb)
    def wrapper(**options: Any) -> None:
        flags = {name: options.pop(name) for name in _FLAGS}
        overrides = [
            f"cluster.{name}={value}" for name, value in flags.items() if value is not None
        ]
        options["overrides"] = overrides + (options["overrides"] or [])
        verb(**options)

    def parameter(name: str) -> inspect.Parameter:
        value_type, text = _FLAGS[name]
        annotation = Annotated[value_type | None, _site(text)]
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
        )

    signature = inspect.signature(verb)
    parameters = [*signature.parameters.values(), *map(parameter, _FLAGS)]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
    return wrapper


def _whole(jobs: str | None) -> int | None:
    if jobs is None:
        return None
    if not jobs.isdecimal() or int(jobs) < 1:
        raise UserError(f"--jobs {jobs}: allowed: auto, or a whole number from 1")
    return int(jobs)


def site_settings(
    cluster: str | None, cluster_file: Path | None, overrides: list[str], only_slurm: dict[str, Any]
) -> "Cluster | None":
    """The settings of --cluster slurm, from file and overrides; says which file was read.

    Args:
        overrides: `cluster.nodes=2`.
        only_slurm: flag -> value, of further flags that only Slurm has.
    """
    if cluster is not None and cluster not in CLUSTERS:
        raise UserError(f"cluster={cluster}: {suggest(cluster, CLUSTERS)}")
    if cluster != "slurm":
        flags = [f"--{flag}" for flag, value in only_slurm.items() if value]
        if unused := [*overrides, *flags]:
            raise UserError(f"{unused[0]} needs --cluster slurm")
        return None
    from mim_bench.cluster.settings import load_cluster

    settings, path = load_cluster(cluster_file, overrides)
    if path is not None:
        print_line(f"settings of the cluster read from {path}")
    return settings


def local_jobs(cluster: str | None, jobs_or_auto: str | None) -> int | None:
    """Number of processes of this machine that a sweep uses; unset: this process alone.

    `auto`: one a core, each on one thread. At `small` two single-threaded cells do 1.2 times the images a
    second of one cell on two threads (README, Speed).
    """
    jobs = num_cores() if jobs_or_auto == "auto" else _whole(jobs_or_auto)
    if cluster == "slurm" and jobs is not None:
        raise UserError(
            f"jobs={jobs} is not for cluster=slurm; there --array bounds how many run at a time"
        )
    if cluster == "debug" and jobs not in (None, 1):
        raise UserError(f"jobs={jobs} is not for cluster=debug, which runs in this process")
    if cluster == "local":
        return jobs or 1
    return None if jobs == 1 else jobs


def submit(request: "SweepRequest", cluster: "Cluster", *, dry_run: bool) -> None:
    """Submits a sweep to Slurm and prints what was submitted and what was not.

    Args:
        dry_run: submit nothing, print every sbatch file, each with the cells of its tasks.
    """
    from mim_bench.cluster.plan import make_plan
    from mim_bench.cluster.submit import submit as submit_plan

    plan = make_plan(request, cluster, copy=False) if dry_run else submit_plan(request, cluster)
    for note in plan.notes:
        print_line(note)
    files = len(plan.batches)
    total = f"{_count(plan.jobs)} in {files} sbatch file{'s' * (files != 1)}"
    if dry_run:
        _print_files(plan)
        print_line(f"\n{total}; nothing was submitted")
    elif not files:
        print_line("nothing to submit")
    else:
        print_line(f"submitted {total}")
        print_line(f"logs: {plan.folder}; code: {plan.code.folder}")
        print_line(f"`status {request.name}` shows their state, `cancel {request.name}` ends them")


def _print_files(plan: "Plan") -> None:
    from mim_bench.cluster import slurm

    if not slurm.is_here():
        print_line("no Slurm here: its default for MaxArraySize is assumed")
    for number, batch in enumerate(plan.batches, start=1):
        print_line(f"\n==== sbatch file {number} of {len(plan.batches)}: {batch.title}")
        for index, job in enumerate(batch.jobs):
            print_line(f"     {f'task {index}: ' if len(batch.jobs) > 1 else ''}{job.title}")
        print_line(plan.script(batch))


def _count(jobs: "Sequence[Job]") -> str:
    """`3 jobs and 1 fit`."""
    fits = sum(job.kind == "fit" for job in jobs)
    runs = len(jobs) - fits
    return f"{runs} job{'s' * (runs != 1)}" + (
        f" and {fits} fit{'s' * (fits != 1)}" if fits else ""
    )


@app.command()
def status(
    benchmark: Name,
    overrides: Overrides = None,
    preset: LastPreset = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    out: Out = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """State of each cell of a sweep on a cluster: missing, queued, running, done or failed."""
    from mim_bench.cluster import status as statuses

    state = statuses.status(benchmark, preset, out=out, results=results, overrides=overrides or [])
    if as_json:
        print(json.dumps(state.as_json(), indent=1))
        return
    headings, rows, lines = statuses.table(state)
    print_lines(f"{state.benchmark}, {Path(state.preset).stem}", headings, rows, lines)
    if state.counts["failed"]:
        words = " ".join(map(shlex.quote, [benchmark, *state.overrides, "--preset", state.preset]))
        print_line(f"`sweep {words} --cluster slurm --retry-failed` tries failed cells again")


@app.command()
def cancel(
    benchmark: Name,
    preset: Annotated[
        str | None, typer.Option(help="Only this preset's jobs; by default all.")
    ] = None,
    out: Out = Path("runs"),
) -> None:
    """End a benchmark's jobs on a cluster, waiting and running. The sweep's command starts them again."""
    from mim_bench.cluster import status as statuses

    print_line(f"cancelled {_count(statuses.cancel(benchmark, preset, out=out))}")
