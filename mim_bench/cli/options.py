"""Shared by the verbs of the command line: consoles, options, and how options become overrides."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mim_bench.errors import UserError, suggest

# no markup: paths and class names hold brackets; a pipe or log file has room for every column
_LOOK: dict[str, Any] = {"markup": False, "highlight": False}
out_console = Console(width=None if sys.stdout.isatty() else 1000, **_LOOK)
err_console = Console(stderr=True, **_LOOK)

WORDS = {"ignore_unknown_options": True}
"""Typer context of commands that take settings: habits such as --mask_ratio 0.6 are read by `mim_bench.cli.words`."""
Target = Annotated[
    str | None,
    typer.Option(help="Recipe name, or path of one ending in .toml; also as a bare word."),
]
Preset = Annotated[str, typer.Option(help="Preset name, or path of one ending in .toml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Settings over preset and recipe."),
]
Seed = Annotated[
    int | None, typer.Option(help="Seed of weights, data order, crops, masks and probes.")
]
Data = Annotated[str | None, typer.Option(help="Data source; see `list data`.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; by default the best there is.")]
Limit = Annotated[
    int | None, typer.Option(help="Use at most so many images of a split, for tests.")
]
Protocols = Annotated[str | None, typer.Option(help="Comma-separated; see `list protocols`.")]
Out = Annotated[Path, typer.Option(help="Folder for run folders, or an existing run folder.")]
Jobs = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto", help="Cells at a time, each on its share of the cores; auto: one a core."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what is done, what is missing, what it costs.")
]
DeviceTflops = Annotated[
    float | None,
    typer.Option(min=0, help="Sustained TFLOP/s to estimate with; by default measured here."),
]
Gpus = Annotated[int | None, typer.Option(min=1, help="With --dry-run: plan for so many devices.")]
QueueLimit = Annotated[
    int | None, typer.Option(min=1, help="With --gpus: jobs queued or running at a time.")
]


def print_line(line: str, *, console: Console = out_console, style: str = "") -> None:
    """One line, never broken: a path can be copied."""
    console.print(line, style=style, soft_wrap=True)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; where the terminal is too narrow, its columns go on below, the first one repeated."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    blocks: list[list[int]] = [[]]
    used_width = 0
    for column, width in list(enumerate(widths))[1:]:
        if blocks[-1] and used_width + width + 3 > out_console.width - widths[0] - 4:
            blocks.append([])
            used_width = 0
        blocks[-1].append(column)
        used_width += width + 3
    for block in blocks:
        rich_table = Table()
        for column in (0, *block):
            justify = (
                "right" if column and all(map(_is_number, (r[column] for r in rows))) else "left"
            )
            rich_table.add_column(headings[column], justify=justify, overflow="fold")
        for row in rows:
            rich_table.add_row(*(row[column] for column in (0, *block)))
        out_console.print(rich_table)


def print_lines(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str]
) -> None:
    """A title, a table if there are rows, and lines under it."""
    print_line(title)
    if rows:
        print_table(headings, rows)
    for line in lines:
        print_line(line)


def _is_number(text: str) -> bool:
    return not text or text[0] in "0123456789-+<" or text == "…"


def target_and_settings(target: str | None, words: Sequence[str] | None) -> tuple[str, list[str]]:
    """The target of --target or of a bare word, and the settings among the words.

    Raises UserError where no target is named, or two.
    """
    from mim_bench.cli.words import read_words
    from mim_bench.config import recipe

    named, overrides = read_words(words)
    if target and named:
        raise UserError(f"two targets: {target} and {named}")
    if not (target or named):
        raise UserError(f"--target is missing; allowed: {', '.join(recipe.names('targets'))}")
    return str(target or named), overrides


def settings_alone(words: Sequence[str] | None) -> list[str]:
    """The settings among the words after a benchmark's name; a target is refused there."""
    from mim_bench.cli.words import read_words

    named, overrides = read_words(words)
    if named:
        raise UserError(f"'{named}': which targets are compared is in the benchmark's file")
    return overrides


def settings(
    overrides: list[str] | None,
    seed: int | None,
    data: str | None = None,
    device: str | None = None,
    limit_images: int | None = None,
    protocols: str | None = None,
    skip_bad_images: bool = False,
) -> list[str]:
    """Options as overrides, before the positional ones, so that both mean the same thing."""
    if protocols is not None and not protocols.replace(",", " ").strip():
        raise UserError(
            "--protocols names none; see `list protocols`, or give `none` to pre-train only"
        )
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


def print_fields(fields: dict[str, tuple[object, object]], a: str, b: str) -> None:
    if not fields:
        out_console.print("the configs do not differ")
        return
    print_table(["field", a, b], [[field, str(x), str(y)] for field, (x, y) in fields.items()])
    only_target = all(field.startswith("target.") for field in fields)
    out_console.print("only the target differs" if only_target else "more than the target differs")


def run_folder(name: str, out: Path) -> Path:
    """A run's folder by its path, or by its name below `out`."""
    for folder in (Path(name), out / name):
        if (folder / "config.json").is_file():
            return folder
    run_ids = [path.parent.name for path in out.glob("*/encoder.safetensors")]
    raise UserError(f"no run '{name}' here or in '{out}'; {suggest(name, run_ids)}")
