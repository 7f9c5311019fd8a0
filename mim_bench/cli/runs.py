"""The verbs on runs: run, list, config show, diff, speed."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mim_bench.cli.options import (
    WORDS,
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
    print_fields,
    print_line,
    print_table,
    run_folder,
    settings,
    target_and_settings,
)
from mim_bench.cli.records import print_records

app = typer.Typer()
config_app = typer.Typer(help="Look at resolved configs.", no_args_is_help=True)

_LEFT_TO_THE_DATA = ("data.image_size", "data.in_chans", "data.mean", "data.std")


@app.command(
    context_settings=WORDS,
    epilog="Example: python -m mim_bench run --target norm_pixel --preset tiny --seed 1 pretrain.epochs=20",
)
def run(
    target: Target = None,
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
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where the run stopped, as it does without this flag."),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Start again even if finished.")] = False,
    readouts: Annotated[
        bool, typer.Option("--readouts", help="Print every readout, not the declared one alone.")
    ] = False,
) -> None:
    """Pre-train on one target, evaluate, record, draw. The same command again continues."""
    from mim_bench.config.resolve import load_config
    from mim_bench.experiment.run import execute
    from mim_bench.train import distributed, progress

    target, words = target_and_settings(target, overrides)
    overrides_given = settings(words, seed, data, device, limit_images, protocols, skip_bad_images)
    config = load_config(target, preset, overrides_given)
    with distributed.joined(config.runtime.timeout_minutes):
        result = execute(
            config,
            out=out,
            force=force,
            stages=progress.Terminal(err_console),
            notify=lambda line: print_line(line, console=err_console, style="dim"),
        )
        if not distributed.is_main():
            return
    if result.was_finished:
        again = f"{result.folder} is already finished; --force starts again"
        print_line(again, console=err_console)
    print_records(result.records, readouts=readouts)
    for artefact, name in (("records", ""), ("picture", ".png"), ("encoder", ".safetensors")):
        if (path := result.folder / f"{artefact}{name}").exists():  # `scratch` alone has no encoder
            print_line(f"{artefact}  {path}")


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
        category = "preset" if what == "presets" else what
        rows = {
            name: recipe.read(category, name).get("description", "")
            for name in recipe.names(category)
        }
    width = max(map(len, rows), default=0)
    for name, description in rows.items():
        print_line(f"{name:<{width}}  {description}")


@config_app.command("show", context_settings=WORDS)
def config_show(
    target: Target = None,
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

    target, words = target_and_settings(target, overrides)
    resolved = resolve(target, preset, settings(words, seed, data))
    if as_json:
        print(resolved.config.model_dump_json(indent=1))
        return
    content = resolved.config.model_dump()
    rows = []
    for key, origin in sorted(
        resolved.origin.items(), key=lambda item: _position(item[0], content)
    ):
        section, _, name = key.partition(".")
        if section == "target":
            value = content["target"]["params"][name]
        else:
            value = content[section][name] if name else content[section]
        left_open = value is None and key in _LEFT_TO_THE_DATA
        text = "as in the data" if left_open else str(value)
        rows.append([key, text, "" if origin == "default" else origin])
    print_table(["field", "value", "from"], rows)
    print_line(
        f"lr {resolved.config.pretrain.lr:g}; values without an origin are defaults", style="dim"
    )


def _position(key: str, content: dict[str, object]) -> int:
    return list(content).index(key.partition(".")[0])


@app.command()
def diff(
    run_a: Annotated[str, typer.Argument(help="Run folder, or a run's name below --out.")],
    run_b: Annotated[str, typer.Argument(help="The other one.")],
    out: Out = Path("runs"),
) -> None:
    """Config difference of two runs: what could have moved a weight."""
    from mim_bench.records.run_folder import difference, read_config

    a, b = (run_folder(name, out) for name in (run_a, run_b))
    differences = difference(read_config(a), read_config(b))
    if not differences:
        print_line("no difference")
        return
    print_fields(differences, a.name, b.name)


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

    overrides_given = settings(overrides, None, device=device)
    title, headings, rows = speeds.measure(target, preset, overrides_given, steps)
    print_line(title)
    print_table(headings, rows)
