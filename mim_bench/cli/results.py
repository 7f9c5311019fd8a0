"""The verbs on benchmarks and their results: sweep, table, figure, report, compare, validate."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mim_bench.cli import cluster as site
from mim_bench.cli.cluster import Name, Results
from mim_bench.cli.options import (
    WORDS,
    Data,
    Device,
    DeviceTflops,
    DryRun,
    Gpus,
    Jobs,
    Limit,
    Out,
    Overrides,
    Preset,
    Protocols,
    QueueLimit,
    err_console,
    print_fields,
    print_line,
    print_lines,
    print_table,
    settings,
    settings_alone,
)
from mim_bench.errors import UserError

if TYPE_CHECKING:
    from mim_bench.experiment.request import SweepRequest

app = typer.Typer()


@app.command(
    context_settings=WORDS,
    epilog="Example: python -m mim_bench sweep targets --jobs 2; add --dry-run to see the cells",
)
@site.with_cluster_flags
def sweep(
    benchmark: Name,
    overrides: Overrides = None,
    preset: Preset = "tiny",
    data: Data = None,
    device: Device = None,
    limit_images: Limit = None,
    protocols: Protocols = None,
    seeds: Annotated[
        str | None, typer.Option(help="Other seeds than the benchmark's, such as 0,1.")
    ] = None,
    jobs: Jobs = None,
    cluster: site.ClusterName = None,
    dry_run: DryRun = False,
    device_tflops: DeviceTflops = None,
    gpus: Gpus = None,
    queue_limit: QueueLimit = None,
    cluster_file: site.ClusterFile = None,
    retry_failed: site.RetryFailed = False,
    evaluate_separately: site.EvaluateSeparately = False,
    evaluate_apart: site.EvaluateApart = False,
    out: Out = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """Run every missing cell of a benchmark, here or on a cluster. The same command again continues."""
    from mim_bench.experiment.request import SweepRequest

    separately = evaluate_separately or evaluate_apart
    words = settings_alone(overrides)
    for_site = [text for text in words if text.startswith("cluster.")]
    for_runs = [text for text in words if text not in for_site]
    for_runs += [f"benchmark.seeds={seeds}"] if seeds else []
    request = SweepRequest(
        benchmark, preset, out, results,
        overrides=tuple(settings(for_runs, None, data, device, limit_images)),
        protocols=tuple(protocols.split(",")) if protocols else None,
        retry_failed=retry_failed,
        evaluate_separately=separately,
    )  # fmt: skip
    only_slurm = {
        "cluster-file": cluster_file, "retry-failed": retry_failed, "evaluate-separately": separately,
    }  # fmt: skip
    only_dry_run = {"gpus": gpus, "queue_limit": queue_limit, "device_tflops": device_tflops}
    _check(benchmark, dry_run, only_dry_run)
    site_settings = site.site_settings(cluster, cluster_file, for_site, only_slurm)
    processes = site.local_jobs(cluster, jobs)
    if dry_run:
        from mim_bench.experiment.dry_run import dry_run as forecast

        estimate = forecast(
            request, device_tflops=device_tflops, gpus=gpus, queue_limit=queue_limit,
            gpus_per_job=site_settings.gpus if site_settings and gpus else 1,
        )  # fmt: skip
        print_lines(estimate.title, estimate.headings, estimate.rows, estimate.lines)
    if site_settings:
        site.submit(request, site_settings, dry_run=dry_run)
    elif not dry_run:
        _sweep_here(request, processes)


def _check(benchmark: str, dry_run: bool, only_dry_run: dict[str, float | None]) -> None:
    from mim_bench.train import distributed

    if distributed.num_launched() > 1:
        raise UserError(
            "sweep is one process, to be started without torchrun; several GPUs a run: "
            "--cluster slurm --gpus-per-node, or `run` under torchrun, run by run"
        )
    if benchmark == "all" and not dry_run:
        raise UserError("benchmark 'all' is for --dry-run; sweep one after another")
    for flag, value in only_dry_run.items():
        if value is not None and not dry_run:
            raise UserError(
                f"{flag}={value} needs --dry-run; a job's size is --nodes and --gpus-per-node"
            )


def _sweep_here(request: "SweepRequest", jobs: int | None) -> None:
    from mim_bench.experiment.sweep import sweep
    from mim_bench.train import progress

    failed = sweep(
        request.name, request.preset, out=request.out, results=request.results,
        overrides=request.overrides, protocols=request.protocols, jobs=jobs,
        stages=progress.Terminal(err_console),
        notify=print_line,
    )  # fmt: skip
    if failed:
        raise UserError(f"{len(failed)} cells failed; the same command tries them again")


@app.command()
def table(
    benchmark: Name,
    overrides: Overrides = None,
    preset: Preset = "tiny",
    results: Results = Path("results"),
    into: Annotated[
        Path | None, typer.Option(help="Also put it into this page, between its table marks.")
    ] = None,
) -> None:
    """Print a benchmark's table and write it next to its records as md, csv and tex."""
    from mim_bench.analysis import render, write
    from mim_bench.analysis import table as tables
    from mim_bench.analysis.external import external_grid

    built = tables.build(benchmark, preset, results, settings_alone(overrides))
    if into is not None:
        write.insert(into, built)
    paths = [*write.write_tables(built, results), *([into] if into else [])]
    grid = render.main_grid(built, brief=True) if built.rows else render.published_grid(built)
    print_table(grid.headings, grid.texts)
    if built.external:
        external = external_grid(built.external)
        print_line(render.EXTERNAL)
        print_table(external.headings, external.texts)
    for note in render.notes(built) if built.rows else [built.benchmark.claim]:
        print_line(note.replace("**", "").replace("`", ""), style="dim")
    _say_written(paths)


@app.command()
def figure(
    benchmark: Name,
    overrides: Overrides = None,
    preset: Preset = "tiny",
    out: Out = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """Draw a benchmark's figures from its records; with its runs at hand, every target's pictures too.

    Where some of the runs are at hand, theirs are kept in `pictures/`, one a target.
    """
    from mim_bench.analysis.figures import draw as figures
    from mim_bench.records import store, swept
    from mim_bench.records.finished import has_runs, keep_pictures

    benchmark, preset, swept_with = swept.recall(
        benchmark, preset, results, settings_alone(overrides)
    )
    paths = figures.draw(benchmark, preset, results, swept_with)
    if has_runs(benchmark, preset, out, swept_with):
        from mim_bench.experiment.gallery import draw_gallery

        paths += draw_gallery(benchmark, preset, out=out, results=results, overrides=swept_with)
    else:
        entries = store.benchmark_records(benchmark, preset, results, swept_with)
        paths += keep_pictures(entries, out, store.home(benchmark, preset, results))
    _say_written(paths)


@app.command()
def tune(
    benchmark: Name,
    preset: Preset = "tiny",
    results: Results = Path("results"),
) -> None:
    """Print the settings that the trials of a tuning benchmark chose, as lines for the benchmark file."""
    from mim_bench.analysis.tuning import as_toml, choices

    chosen = choices(benchmark, preset, results)
    rows = [
        [choice.target, *(f"{100 * score:.1f}" for score in choice.scores.values()), choice.best]
        for choice in chosen
    ]
    print_table(["target", *chosen[0].scores, "best"], rows)
    print_line(as_toml(chosen, preset))


@app.command()
def similarity(
    benchmark: Name,
    overrides: Overrides = None,
    preset: Preset = "tiny",
    out: Out = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """Measure how similar a benchmark's encoders are and how well each predicts every target."""
    from mim_bench.analysis.figures.similarity import draw_similarity
    from mim_bench.experiment.similarity import write_similarity

    overrides_given = settings_alone(overrides)
    paths = write_similarity(benchmark, preset, out=out, results=results, overrides=overrides_given)
    paths += draw_similarity(benchmark, preset, results, overrides_given)
    _say_written(paths)


@app.command()
def report(results: Results = Path("results")) -> None:
    """Put all tables, figures and pictures on one self-contained page, results/report.html."""
    from mim_bench.analysis.report.page import write_report

    path = write_report(results, warn=lambda line: print_line(line, console=err_console))
    _say_written([path])


def _say_written(paths: Sequence[Path]) -> None:
    print_line("wrote " + ", ".join(map(str, paths)))


@app.command()
def compare(
    run_a: Annotated[
        str, typer.Argument(help="Run folder, or a run's name below --out or --results.")
    ],
    run_b: Annotated[str, typer.Argument(help="The other one.")],
    out: Out = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """Paired difference of two runs with its interval, and the difference of their configs."""
    from mim_bench.analysis import compare as comparison

    a, b = (comparison.records_of(name, out=out, results=results) for name in (run_a, run_b))
    shared, fields = comparison.compare(a, b)
    names = [next(iter(records.values())).run_id for records in (a, b)]
    rows = []
    for number in shared:
        texts, delta = [f"{value:.4g}" for value in (number.a, number.b)], "-"
        if number.difference:
            texts = [f"{100 * value:.2f}" for value in (number.a, number.b)]
            delta = f"{100 * number.difference.mean:+.2f} {number.difference.interval}"
        rows.append([number.measure, *texts, delta])
    print_table(["measure", *names, "difference"], rows)
    print_line(
        "accuracies in per cent; difference paired by test image, with its 95 % interval over "
        "images; one run each, so chance between seeds is not in it",
        style="dim",
    )
    print_fields(fields, *names)


@app.command()
def validate(
    results: Results = Path("results"),
    out: Out = Path("runs"),
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Hash every file of the runs, rather than look at sizes."),
    ] = False,
) -> None:
    """Check every recipe, preset, benchmark, record and run; exit code 2 with what is wrong."""
    from mim_bench.analysis.validate import validate as check

    if not results.is_dir() and results != Path("results"):
        raise UserError(f"no folder {results}")
    checked, faults = check(results, out, verify=verify)
    for fault in faults:
        print_line(fault, console=err_console)
    print_line("checked " + ", ".join(checked))
    if faults:
        raise UserError(f"{len(faults)} fault{'s' * (len(faults) > 1)}")
