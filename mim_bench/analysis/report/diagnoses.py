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
_HEADINGS = {
    "knn": "kNN %",
    "linear": "linear %",
    "num_images": "images",
    "copy_r2": "copy R²",
    "ridge_r2": "ridge R²",
    "microseconds": "µs an image",
    "mflops": "MFLOPs an image",
    "state_mb": "MB kept",
}
"""Headings that are not the column's name in words."""
LEGEND = (
    "mean, variance: of the values; effective dim: dimensions that carry the variance; neighbour correlation, "
    "correlation length in patches, high frequency: how values vary over the grid; class share: of a patch's variance, "
    "between image classes; copy R², ridge R²: share of the mean's loss that copying the nearest visible patch and "
    "ridge regression from visible pixels remove; images: that values were measured on; kNN, linear: the target itself "
    "as a feature, on a few thousand images; MB kept: codebooks and teachers."
)
"""Meaning of the columns, for people."""


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
            grid = diagnoses_grid(pd.read_csv(path))
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


def diagnoses_grid(table: pd.DataFrame) -> Grid:
    """One row a target, of the columns that `diagnose` writes."""
    columns = [str(name) for name in table.columns]
    headings = [_HEADINGS.get(name, name.replace("_", " ")) for name in columns]
    rows = [
        [TableCell(str(row[0])), *map(_cell, columns[1:], row[1:])]
        for row in table.itertuples(index=False)
    ]
    return Grid(headings, rows)


def _cell(column: str, value: Any) -> TableCell:
    number = float("nan" if value is None else value)
    if math.isnan(number):
        return MISSING
    if column in _SHARES:
        text = f"{100 * number:.1f}"
    elif number.is_integer() or abs(number) >= 100:
        text = f"{number:,.0f}"
    else:
        text = f"{number:.3g}" if abs(number) >= 0.001 else f"{number:.3f}"
    return TableCell(text, number)
