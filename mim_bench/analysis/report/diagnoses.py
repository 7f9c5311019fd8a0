"""Properties of targets before any training in the report: the table and the figure of `diagnose`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mim_bench.analysis.grid import MISSING, Grid, TableCell
from mim_bench.analysis.report.inline import Image, image
from mim_bench.errors import UserError

_SHARES = ("knn", "linear")
"""Columns that are accuracies: per cent on the page."""


@dataclass(frozen=True)
class Diagnosed:
    """The targets that were diagnosed at a preset."""

    preset: str
    grid: Grid
    image: Image | None

    @property
    def caption(self) -> str:
        """Heading of its table."""
        return f"Targets before any training, preset {self.preset}"


def diagnosed(results: Path, warn: Any) -> list[Diagnosed]:
    """Every file that `diagnose` left in a folder of results; one that cannot be read is warned about."""
    sections = []
    for path in sorted((results / "diagnose").glob("*.csv")):
        try:
            grid = _grid(pd.read_csv(path))
        except (OSError, ValueError, KeyError) as error:
            warn(f"{path}: {error}")
            continue
        drawing = path.with_suffix(".svg")
        alt = f"how predictable and how useful each target is, preset {path.stem}"
        try:
            shown = image(drawing, alt, f"diagnose-{path.stem}") if drawing.is_file() else None
        except UserError as error:
            warn(str(error))
            shown = None
        sections.append(Diagnosed(path.stem, grid, shown))
    return sections


def _grid(table: pd.DataFrame) -> Grid:
    headings = [str(name).replace("_", " ") for name in table.columns]
    headings = [f"{name} %" if name in _SHARES else name for name in headings]
    columns = [str(name) for name in table.columns]
    rows = [
        [TableCell(str(row[0])), *map(_cell, columns[1:], row[1:])]
        for row in table.itertuples(index=False)
    ]
    return Grid(headings, rows)


def _cell(column: str, value: Any) -> TableCell:
    number = float(value)
    if math.isnan(number):
        return MISSING
    text = f"{100 * number:.1f}" if column in _SHARES else f"{number:.3g}"
    return TableCell(text, number)
