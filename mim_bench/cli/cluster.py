"""The verbs on a cluster's jobs, status and cancel, and what `sweep --cluster slurm` does."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mim_bench.cli.options import Out, Overrides, out_console
from mim_bench.errors import UserError, suggest

if TYPE_CHECKING:
    from mim_bench.cluster.settings import Cluster
    from mim_bench.cluster.submission import Asked, Submission

app = typer.Typer()

CLUSTERS = ("slurm", "local", "debug")
_PANEL = "On a cluster (--cluster slurm); site and size may stand in cluster.toml"

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
ClusterFile = Annotated[
    Path | None,
    typer.Option(
        help="Site settings; by default ./cluster.toml if it is there.", rich_help_panel=_PANEL
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Submit failed cells again.", rich_help_panel=_PANEL)
]
EvaluateApart = Annotated[
    bool,
    typer.Option(
        "--evaluate-apart",
        help="Evaluations are jobs of their own, after the pre-trainings.",
        rich_help_panel=_PANEL,
    ),
]


def _site(text: str, **limits: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=_PANEL, **limits)


Partition = Annotated[str | None, _site("Where jobs are queued.")]
Account = Annotated[str | None, _site("Whom the time is charged to.")]
Qos = Annotated[str | None, _site("Quality of service.")]
Constraint = Annotated[str | None, _site("Features that a node must have.")]
Nodes = Annotated[int | None, _site("Machines of a job.", min=1)]
GpusPerNode = Annotated[int | None, _site("GPUs of each machine.", min=1)]
TasksPerNode = Annotated[
    int | None, _site("Processes on each machine; by default one a GPU.", min=1)
]
CpusPerTask = Annotated[int | None, _site("Cores of each process.", min=1)]
MemGb = Annotated[float | None, _site("Memory of each machine, in GB.", min=0)]
TimeoutHours = Annotated[float | None, _site("Time limit of a job, in hours.", min=0)]
Array = Annotated[int | None, _site("Jobs that run at a time.", min=1)]


def chosen_jobs(cluster: str | None, jobs: int | None, site: dict[str, Any]) -> int | None:
    """How many processes of this machine a sweep uses; unset: this process alone.

    Args:
        site: flag -> what was given, of those that a cluster has.

    Raises:
        UserError: no such cluster, or flags that do not go together.
    """
    if cluster is not None and cluster not in CLUSTERS:
        raise UserError(f"cluster={cluster}: {suggest(cluster, CLUSTERS)}")
    if cluster != "slurm":
        for flag, value in site.items():
            if value not in (None, False):
                raise UserError(f"{flag}={value} needs cluster=slurm")
    elif jobs is not None:
        raise UserError(
            f"jobs={jobs} is not for cluster=slurm; there --array bounds how many run at a time"
        )
    if cluster == "debug" and jobs not in (None, 1):
        raise UserError(f"jobs={jobs} is not for cluster=debug, which runs in this process")
    if cluster == "local":
        return jobs or 1
    return None if jobs == 1 else jobs


def check_planned(dry_run: bool, flags: dict[str, Any]) -> None:
    """That flags which only plan are not taken for the size of a job.

    Args:
        flags: flag -> what was given.

    Raises:
        UserError: one is given without --dry-run.
    """
    for flag, value in flags.items():
        if value is not None and not dry_run:
            raise UserError(
                f"{flag}={value} needs --dry-run; a job's size is --nodes and --gpus-per-node"
            )


def settled(cluster_file: Path | None, flags: dict[str, Any]) -> "Cluster":
    """The cluster's settings from flags and file; says which file was read.

    Args:
        flags: field -> value, unset where not given.
    """
    from mim_bench.cluster.settings import load_cluster

    given = {name: value for name, value in flags.items() if value is not None}
    cluster, path = load_cluster(cluster_file, given)
    if path is not None:
        _print(f"settings of the cluster read from {path}")
    return cluster


def show(asked: "Asked", cluster: "Cluster") -> None:
    """Prints every sbatch file that a sweep would submit, each with the cells of its tasks."""
    from mim_bench.cluster import slurm
    from mim_bench.cluster.submission import submission

    made = submission(asked, cluster, copy=False)
    for line in made.lines:
        _print(line)
    if not slurm.is_here():
        _print("no Slurm here: its default for MaxArraySize is assumed")
    for number, batch in enumerate(made.batches, start=1):
        _print(f"\n==== sbatch file {number} of {len(made.batches)}: {batch.title}")
        for place, part in enumerate(batch.parts):
            _print(f"     {f'task {place}: ' if len(batch.parts) > 1 else ''}{part.name}")
        _print(made.script(batch))
    _print(f"\n{_summary(made)}; nothing was submitted")


def submit(asked: "Asked", cluster: "Cluster") -> None:
    """Hands a sweep to Slurm and says what was handed over and what was not."""
    from mim_bench.cluster.submit import submit as hand_over

    made = hand_over(asked, cluster)
    for line in made.lines:
        _print(line)
    _print(f"submitted {_summary(made)}" if made.batches else "nothing to submit")
    if made.batches:
        _print(f"logs: {made.folder}; code: {made.code.folder}")
        _print(f"`status {asked.name}` shows how they fare, `cancel {asked.name}` ends them")


def _summary(made: "Submission") -> str:
    num_fits = sum(batch.parts[0].entry.kind == "fit" for batch in made.batches)
    files, runs = len(made.batches), made.num_runs
    fits = f" and {num_fits} fit{'s' * (num_fits != 1)}" if num_fits else ""
    return f"{runs} job{'s' * (runs != 1)}{fits} in {files} sbatch file{'s' * (files != 1)}"


def _print(line: str) -> None:
    out_console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def status(
    benchmark: Name,
    overrides: Overrides = None,
    preset: LastPreset = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    out: Out = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """How each cell of a sweep on a cluster fares: missing, queued, running, done or failed."""
    from mim_bench.cluster import status as statuses

    found = statuses.status(benchmark, preset, out=out, results=results, overrides=overrides or [])
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    out_console.print(statuses.table(found), highlight=False)
    if found.counts["failed"]:
        asked = " ".join(map(shlex.quote, [benchmark, *found.overrides, "--preset", found.preset]))
        _print(f"`sweep {asked} --cluster slurm --retry-failed` tries failed cells again")


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

    ended = statuses.cancel(benchmark, preset, out=out)
    num_fits = sum(entry.kind == "fit" for entry in ended)
    runs = len(ended) - num_fits
    fits = f" and {num_fits} fit{'s' * (num_fits != 1)}" if num_fits else ""
    _print(f"cancelled {runs} job{'s' * (runs != 1)}{fits}")
