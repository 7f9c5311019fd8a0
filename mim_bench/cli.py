"""The command line: a thin layer over the Python surface.

Exit codes: 0 done, 1 our mistake, 2 the user's (one line, no traceback unless --debug), 130 stopped.
"""

import errno
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from mim_bench.error import UserError

if TYPE_CHECKING:
    from mim_bench.record import Record

app = typer.Typer(
    name="mim_bench",
    help="Which reconstruction target makes the best masked image model, everything else being equal?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
config_app = typer.Typer(help="Look at resolved configs.", no_args_is_help=True)
app.add_typer(config_app, name="config")

_LEFT_TO_THE_DATA = ("data.image_size", "data.in_chans", "data.mean", "data.std")

_NOT_OUR_FAULT = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
"""A full disk, or one that may not be written to."""

_out = Console(width=None if sys.stdout.isatty() else 140)  # a log file has room
_err = Console(stderr=True)

Target = Annotated[str, typer.Option(help="Recipe name, or path of one ending in .toml.")]
Preset = Annotated[str, typer.Option(help="Preset name, or path of one ending in .toml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Settings over preset and recipe."),
]
Seed = Annotated[int | None, typer.Option(help="Of weights, data order, crops, masks, probes.")]
Data = Annotated[str | None, typer.Option(help="Data source; see `list data`.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; by default the best there is.")]
Limit = Annotated[
    int | None, typer.Option(help="Use at most so many images of a split, for tests.")
]
Protocols = Annotated[str | None, typer.Option(help="Comma-separated; see `list protocols`.")]
Out = Annotated[Path, typer.Option(help="Folder for run folders, or an existing run folder.")]


def _settings(
    overrides: list[str] | None,
    seed: int | None,
    data: str | None = None,
    device: str | None = None,
    limit_images: int | None = None,
    protocols: str | None = None,
    skip_bad_images: bool = False,
) -> list[str]:
    """Options as overrides, before the positional ones, so that both mean the same thing."""
    options = {
        "seed": seed,
        "data.source": data,
        "runtime.device": device,
        "data.limit_images": limit_images,
        "evaluate.protocols": protocols,
        "data.skip_bad_images": "true" if skip_bad_images else None,
    }
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return given + (overrides or [])


@app.command(
    epilog="Example: python -m mim_bench run --target norm_pixel --preset tiny --seed 1 pretrain.epochs=20"
)
def run(
    target: Target,
    overrides: Overrides = None,
    preset: Preset = "tiny",
    seed: Seed = None,
    data: Data = None,
    device: Device = None,
    limit_images: Limit = None,
    protocols: Protocols = None,
    skip_bad_images: Annotated[
        bool, typer.Option("--skip-bad-images", help="Leave unreadable images out and count them.")
    ] = False,
    out: Out = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="What happens anyway.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Start again even if finished.")] = False,
) -> None:
    """Pre-train on one target, evaluate, record, draw. The same command again continues."""
    from mim_bench import experiment, progress
    from mim_bench.resolve import load_config

    settings = _settings(overrides, seed, data, device, limit_images, protocols, skip_bad_images)
    config = load_config(target, preset, settings)
    result = experiment.execute(
        config,
        out=out,
        force=force,
        stages=progress.Terminal(_err),
        told=lambda line: _err.print(line, style="dim", highlight=False),
    )
    if result.was_finished:
        _err.print(f"{result.folder} is already finished; --force starts again", highlight=False)
    _print_records(result.records)
    _out.print(f"records  {result.folder / 'records'}", highlight=False)
    _out.print(f"picture  {result.folder / 'picture.png'}", highlight=False)
    _out.print(f"encoder  {result.folder / 'encoder.safetensors'}", highlight=False)


def _print_records(records: "list[Record]") -> None:
    from mim_bench.measure import measures

    table = Table("target", "measure")
    for heading in ("value", "random weights", "images/s", "wall time s"):
        table.add_column(heading, justify="right")
    for record in records:
        facts = record.pretrain
        for place, (name, measure) in enumerate(measures(record).items()):
            value, control = f"{measure.value:.4g}", ""
            if measure.is_accuracy:
                stderr = max(metric.stderr for metric in measure.metrics)
                value = f"{100 * measure.value:.1f} ± {100 * stderr:.1f} %"
                control = f"{100 * measure.control:.1f} %" if measure.control is not None else "-"
            seconds = (facts.seconds if facts else 0) + record.seconds
            table.add_row(
                record.target,
                name,
                value,
                control,
                f"{facts.images_per_s:,.0f}" if facts and not place else "",
                "" if place else f"{seconds:.0f}",
                style="bold" if not place and _out.is_terminal else "",
            )
    if records:
        _out.print(table)
        _out.print(
            f"accuracies: top-1 on the {records[0].data.split} split, read at "
            f"{records[0].config['evaluate']['layer']}/{records[0].config['evaluate']['pooling']} unless "
            "@ names another readout; ± standard error over its images; images/s of pre-training; wall "
            "time of pre-training and the protocol",
            style="dim",
        )


@app.command("list")
def list_(
    what: Annotated[
        Literal["targets", "presets", "protocols", "data", "benchmarks"], typer.Argument()
    ],
) -> None:
    """What there is: targets, presets, protocols, data sources, benchmarks."""
    from mim_bench import recipe

    if what == "targets":
        rows = {name: recipe.load_recipe(name).description for name in recipe.names("targets")}
    elif what == "data":
        from mim_bench.data import list_sources

        rows = list_sources()
    elif what == "protocols":
        from mim_bench.protocols import PROTOCOLS

        rows = {name: protocol.description for name, protocol in PROTOCOLS.items()}
    else:
        kind = "preset" if what == "presets" else what
        rows = {name: recipe.read(kind, name).get("description", "") for name in recipe.names(kind)}
    width = max(map(len, rows), default=0)
    for name, description in rows.items():
        _out.print(f"{name:<{width}}  {description}", highlight=False)


@config_app.command("show")
def config_show(
    target: Target,
    overrides: Overrides = None,
    preset: Preset = "tiny",
    seed: Seed = None,
    data: Data = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The config as a run would write it.")
    ] = False,
) -> None:
    """The resolved config, with where each value came from."""
    from mim_bench.resolve import resolve

    found = resolve(target, preset, _settings(overrides, seed, data))
    if as_json:
        print(found.config.model_dump_json(indent=1))
        return
    content = found.config.model_dump()
    table = Table("field", "value", "from")
    for key, origin in sorted(found.origin.items(), key=lambda item: _place(item[0], content)):
        section, _, name = key.partition(".")
        if section == "target":
            value = content["target"]["params"][name]
        else:
            value = content[section][name] if name else content[section]
        left_open = value is None and key in _LEFT_TO_THE_DATA
        shown = "as in the data" if left_open else str(value)
        table.add_row(key, shown, "" if origin == "default" else origin)
    _out.print(table)
    _out.print(
        f"lr {found.config.pretrain.lr:g}; values without an origin are defaults", style="dim"
    )


def _place(key: str, content: dict[str, object]) -> int:
    return list(content).index(key.partition(".")[0])


@app.command()
def diff(
    run_a: Annotated[str, typer.Argument(help="Run folder, or a run's name below --out.")],
    run_b: Annotated[str, typer.Argument(help="The other one.")],
    out: Out = Path("runs"),
) -> None:
    """Config difference of two runs: what could have moved a weight."""
    from mim_bench import run_folder

    a, b = (_run_folder(name, out) for name in (run_a, run_b))
    differences = run_folder.difference(run_folder.read_config(a), run_folder.read_config(b))
    if not differences:
        _out.print("no difference")
        return
    _print_fields(differences, a.name, b.name)


def _print_fields(fields: "dict[str, tuple[object, object]]", a: str, b: str) -> None:
    table = Table("field", a, b)
    for field, (left, right) in fields.items():
        table.add_row(field, str(left), str(right))
    _out.print(table)
    only_target = all(field.startswith("target.") for field in fields)
    _out.print("only the target differs" if only_target else "more than the target differs")


def _run_folder(name: str, out: Path) -> Path:
    from mim_bench.error import suggest

    for folder in (Path(name), out / name):
        if (folder / "config.json").is_file():
            return folder
    there = [path.parent.name for path in out.glob("*/config.json")]
    raise UserError(f"no run '{name}' here or in '{out}'; {suggest(name, there)}")


Name = Annotated[str, typer.Argument(help="Benchmark; see `list benchmarks`.")]
Results = Annotated[Path, typer.Option(help="Folder of records, tables and figures.")]


@app.command(
    epilog="Example: python -m mim_bench sweep targets --jobs 2; add --dry-run to see the cells"
)
def sweep(
    benchmark: Name,
    overrides: Overrides = None,
    preset: Preset = "tiny",
    data: Data = None,
    device: Device = None,
    limit_images: Limit = None,
    protocols: Protocols = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Cells at a time, each on its share of the cores.")
    ] = 1,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what is done, what is missing, what it costs."),
    ] = False,
    device_tflops: Annotated[
        float | None,
        typer.Option(min=0, help="Sustained TFLOP/s to estimate with; by default measured here."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="With --dry-run: plan for so many devices.")
    ] = None,
    queue_limit: Annotated[
        int | None, typer.Option(min=1, help="With --gpus: jobs queued or running at a time.")
    ] = None,
    out: Out = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """Run every missing cell of a benchmark here. The same command again continues."""
    from mim_bench import progress
    from mim_bench.sweep import sweep as run_sweep

    settings = _settings(overrides, None, data, device, limit_images)
    if dry_run:
        from mim_bench.dry_run import dry_run as plan

        for part in plan(
            benchmark,
            preset,
            results=results,
            overrides=settings,
            device_tflops=device_tflops,
            gpus=gpus,
            queue_limit=queue_limit,
        ):
            _out.print(part, highlight=False)
        return
    failed = run_sweep(
        benchmark,
        preset,
        out=out,
        results=results,
        overrides=settings,
        protocols=protocols.split(",") if protocols else None,
        jobs=jobs,
        stages=progress.Terminal(_err),
        told=lambda line: _out.print(line, highlight=False),
    )
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
    """Print a benchmark's table and write it beside its records as md, csv and tex."""
    from mim_bench import render
    from mim_bench import table as tables

    made = tables.build(benchmark, preset, results, overrides or [])
    paths = render.write_tables(made, results)
    _print_table(*(render.texts(made, brief=True) if made.rows else render.published_texts(made)))
    for note in render.notes(made) if made.rows else [made.benchmark.claim]:
        _out.print(note, style="dim", markup=False, highlight=False)
    if into is not None:
        render.insert(into, made)
        paths.append(into)
    _out.print("wrote " + ", ".join(map(str, paths)), highlight=False, soft_wrap=True)


def _print_table(headings: list[str], lines: list[list[str]]) -> None:
    shown = Table(*headings[:1])
    for heading in headings[1:]:
        shown.add_column(heading, justify="right")
    for line in lines:
        shown.add_row(*(cell.replace("**", "").replace("[", r"\[") for cell in line))
    _out.print(shown)


@app.command()
def figure(
    benchmark: Name,
    preset: Preset = "tiny",
    out: Out = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """Draw a benchmark's figures from its records; with its runs at hand, every target's pictures too."""
    from mim_bench import figure as figures
    from mim_bench.gallery import draw_gallery, has_runs

    paths = figures.draw(benchmark, preset, results)
    if has_runs(benchmark, preset, out):
        paths.append(draw_gallery(benchmark, preset, out=out, results=results))
    _out.print("wrote " + ", ".join(map(str, paths)), highlight=False, soft_wrap=True)


@app.command()
def report(results: Results = Path("results")) -> None:
    """Put all tables, figures and pictures on one self-contained page, results/report.html."""
    from mim_bench.report import write_report

    path = write_report(results, told=lambda line: _err.print(line, highlight=False))
    _out.print(f"wrote {path}", highlight=False)


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
    from mim_bench import compare as comparison
    from mim_bench import render

    a, b = (comparison.records_of(name, out=out, results=results) for name in (run_a, run_b))
    shared, fields = comparison.compare(a, b)
    names = [next(iter(found.values())).run_id for found in (a, b)]
    lines = []
    for one in shared:
        scale = 100 if one.difference else 1
        values = [f"{scale * value:.4g}" for value in (one.a, one.b)]
        lines.append([one.measure, *values, render.difference(one.difference)])
    _print_table(["measure", *names, "difference"], lines)
    _out.print(
        "accuracies in per cent; difference paired by test image, with the 95 % interval of a bootstrap over "
        "images; one run each, so chance between seeds is not in it",
        style="dim",
    )
    _print_fields(fields, *names)


@app.command()
def validate(results: Results = Path("results")) -> None:
    """Check every recipe, preset, benchmark and record; exit code 2 with what is wrong."""
    from mim_bench.validate import validate as check

    checked, faults = check(results)
    for fault in faults:
        _err.print(fault, markup=False, highlight=False, soft_wrap=True)
    _out.print("checked " + ", ".join(checked), highlight=False)
    if faults:
        raise UserError(f"{len(faults)} faults")


@app.command()
def speed(
    preset: Preset = "tiny",
    overrides: Overrides = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Recipe to time, repeatable; by default every one.")
    ] = None,
    device: Device = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps timed for each target, after warm-up.")
    ] = 20,
) -> None:
    """Time the pre-training step for each target on this device."""
    from mim_bench import speed as speeds

    table = speeds.measure(target, preset, _settings(overrides, None, device=device), steps)
    _out.print(table)


@app.callback()
def _common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=_err, show_time=False, show_path=False)],
    )
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's stop is as good as Ctrl-C
    for noisy in ("matplotlib", "PIL", "asyncio", "filelock", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = app(
            [a for a in arguments if a != "--debug"], standalone_mode=False, prog_name="mim_bench"
        )
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        if debug:
            raise
        _stop(f"error: {error}", 2)
    except (KeyboardInterrupt, typer.Abort):
        _stop("stopped; the same command continues", 130)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # click's errors, which typer brings along
        if usage is not None:
            _stop(f"error: {usage()}", 2)
        if debug:
            raise
        if isinstance(error, OSError) and error.errno in _NOT_OUR_FAULT:
            _stop(f"error: {error.filename or 'disk'}: {error.strerror}", 2)
        _stop(f"internal error: {type(error).__name__}: {error}; --debug shows where", 1)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _stop(line: str, code: int) -> NoReturn:
    _err.print(line, markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)
