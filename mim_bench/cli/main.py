"""The command line: a thin layer over the Python surface.

Exit codes: 0 done, 1 our mistake, 2 the user's (one line, no traceback unless --debug), 130 stopped.
"""

import errno
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.logging import RichHandler
from rich.table import Table

from mim_bench.cli import cluster, results
from mim_bench.cli.options import (
    Data,
    Device,
    Limit,
    Out,
    Overrides,
    Preset,
    Protocols,
    Seed,
    Target,
    err_console,
    out_console,
    print_fields,
    settings,
)
from mim_bench.errors import UserError, user_code_line

if TYPE_CHECKING:
    from mim_bench.records.record import Record

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
app.add_typer(results.app)
app.add_typer(cluster.app)

_LEFT_TO_THE_DATA = ("data.image_size", "data.in_chans", "data.mean", "data.std")

_STOPPED = 130
"""Exit code of what Ctrl-C or a scheduler ended."""
_NOT_OUR_FAULT = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOENT,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.EIO,
)  # fmt: skip
"""A full disk, one that may not be written to, a path that cannot be, too many open files."""


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
    from mim_bench.config.resolve import load_config
    from mim_bench.experiment.run import execute
    from mim_bench.train import distributed, progress

    given = settings(overrides, seed, data, device, limit_images, protocols, skip_bad_images)
    config = load_config(target, preset, given)
    with distributed.joined(config.runtime.timeout_minutes):
        result = execute(
            config,
            out=out,
            force=force,
            stages=progress.Terminal(err_console),
            notify=lambda line: err_console.print(line, style="dim", highlight=False),
        )
        if not distributed.is_main():
            return
    if result.was_finished:
        err_console.print(
            f"{result.folder} is already finished; --force starts again", highlight=False
        )
    _print_records(result.records)
    out_console.print(f"records  {result.folder / 'records'}", highlight=False)
    out_console.print(f"picture  {result.folder / 'picture.png'}", highlight=False)
    out_console.print(f"encoder  {result.folder / 'encoder.safetensors'}", highlight=False)


def _print_records(records: "list[Record]") -> None:
    from mim_bench.records.measure import measures

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
                style="bold" if not place and out_console.is_terminal else "",
            )
    if records:
        out_console.print(table)
        out_console.print(
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
    """List what there is: targets, presets, protocols, data sources, benchmarks."""
    from mim_bench.config import recipe

    if what == "targets":
        rows = {name: recipe.load_recipe(name).description for name in recipe.names("targets")}
    elif what == "data":
        from mim_bench.config.source import SOURCES

        rows = {name: spec.description for name, spec in SOURCES.items()}
    elif what == "protocols":
        from mim_bench.config.protocol import PROTOCOLS

        rows = {name: protocol.description for name, protocol in PROTOCOLS.items()}
    else:
        kind = "preset" if what == "presets" else what
        rows = {name: recipe.read(kind, name).get("description", "") for name in recipe.names(kind)}
    width = max(map(len, rows), default=0)
    for name, description in rows.items():
        out_console.print(f"{name:<{width}}  {description}", highlight=False)


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
    from mim_bench.config.resolve import resolve

    found = resolve(target, preset, settings(overrides, seed, data))
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
    out_console.print(table)
    out_console.print(
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
    from mim_bench.records import run_folder

    a, b = (_run_folder(name, out) for name in (run_a, run_b))
    differences = run_folder.difference(run_folder.read_config(a), run_folder.read_config(b))
    if not differences:
        out_console.print("no difference")
        return
    print_fields(differences, a.name, b.name)


def _run_folder(name: str, out: Path) -> Path:
    from mim_bench.errors import suggest

    for folder in (Path(name), out / name):
        if (folder / "config.json").is_file():
            return folder
    there = [path.parent.name for path in out.glob("*/config.json")]
    raise UserError(f"no run '{name}' here or in '{out}'; {suggest(name, there)}")


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
    from mim_bench.evaluate import speed as speeds

    table = speeds.measure(target, preset, settings(overrides, None, device=device), steps)
    out_console.print(table)


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
        handlers=[RichHandler(console=err_console, show_time=False, show_path=False)],
    )
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's stop is as good as Ctrl-C
    for noisy in ("matplotlib", "PIL", "asyncio", "filelock", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = app(
            [a for a in arguments if a != "--debug"], standalone_mode=False, prog_name="mim_bench"
        )
        if code == _STOPPED:  # so do newer versions of typer tell Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        if debug:
            raise
        _stop(f"error: {error}", 2, error)
    except (KeyboardInterrupt, typer.Abort):
        _stop("stopped; the same command continues", _STOPPED)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # click's errors, which typer brings along
        if usage is not None:
            _stop(f"error: {usage()}", 2, error)
        if debug:
            raise
        if isinstance(error, OSError) and error.errno in _NOT_OUR_FAULT:
            _stop(f"error: {error.filename or 'disk'}: {error.strerror}", 2)
        from mim_bench.train.distributed import is_lost_peer

        if is_lost_peer(error):
            reason = str(error).strip().partition("\n")[0]
            _stop(
                f"error: another process of this run ended or was silent too long ({reason})",
                1,
                error,
            )
        if line := user_code_line(error):
            _stop(f"error: {line}: {type(error).__name__}: {error}; --debug shows more", 2, error)
        _stop(f"internal error: {type(error).__name__}: {error}; --debug shows where", 1, error)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _stop(line: str, code: int, error: Exception | None = None) -> NoReturn:
    number = os.environ.get("RANK", "0")
    if number != "0":  # one of several processes: rank 0 speaks for all, unless it does not know
        from mim_bench.train.distributed import is_reported

        line = "" if error is None or is_reported(error) else f"rank {number}: {line}"
    if line:
        err_console.print(line, markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)
