"""Shared by the verbs of the command line: consoles, options, and how options become overrides."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

out_console = Console(width=None if sys.stdout.isatty() else 140)  # a log file has room
err_console = Console(stderr=True)

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
    table = Table("field", a, b)
    for field, (left, right) in fields.items():
        table.add_row(field, str(left), str(right))
    out_console.print(table)
    only_target = all(field.startswith("target.") for field in fields)
    out_console.print("only the target differs" if only_target else "more than the target differs")
