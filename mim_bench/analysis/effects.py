"""Effects of the factors of a table whose rows are all combinations: how many points a level is worth.

The effect of a level is the mean over the levels of all other factors of its difference to the reference row's level,
in points with its interval (`mim_bench.analysis.difference`). Shares of variance are not given: they depend on which
levels somebody chose, and one extreme level alone moves them from a fifth to two thirds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mim_bench.analysis import difference
from mim_bench.analysis.difference import Difference
from mim_bench.analysis.row import RowRecords


@dataclass(frozen=True)
class Effects:
    """One factor on one measure."""

    field: str
    """Field of the grid whose levels are compared; `variant` for the benchmark's variants."""
    reference: str
    """Level of the reference row."""
    others: tuple[str, ...]
    """Factors that it is averaged over."""
    of_level: Mapping[str, Difference]
    """Level -> mean difference to the reference's."""


def effects(by_label: Mapping[str, RowRecords], reference: str, key: str) -> list[Effects]:
    """The effects of every factor; none where rows lack the measure, or are not all combinations of two or more."""
    lines = [
        row for row in by_label.values() if not row.is_baseline and row.label == row.cell.label
    ]
    points = {row.label: {field: str(v) for field, v in row.cell.point.items()} for row in lines}
    if reference not in points or not all(row.values(key) for row in lines):
        return []
    levels = {
        field: list(dict.fromkeys(point[field] for point in points.values()))
        for field in points[reference]
    }
    factors = [field for field, field_levels in levels.items() if len(field_levels) > 1]
    if len(factors) < 2 or len(points) != int(np.prod([len(levels[f]) for f in factors])):
        return []
    rows = {row.label: row.correctness(key) for row in lines}
    return [_effects(field, factors, points, levels[field], rows, reference) for field in factors]


def _effects(
    field: str,
    factors: Sequence[str],
    points: Mapping[str, Mapping[str, str]],
    levels: Sequence[str],
    rows: difference.Rows,
    reference: str,
) -> Effects:
    base = points[reference][field]
    labels_of = {
        level: [label for label in points if points[label][field] == level] for level in levels
    }
    weights = {
        level: {
            **dict.fromkeys(labels_of[level], 1 / len(labels_of[level])),
            **dict.fromkeys(labels_of[base], -1 / len(labels_of[base])),
        }
        for level in levels
        if level != base
    }
    others = tuple(name for name in factors if name != field)
    return Effects(field, base, others, difference.contrasts(rows, weights))


def sentence(effects: Effects, heading: str) -> str:
    """`Effect of mask.ratio on linear (points, mean over target; against 0.75): 0.5: +1.2 [+0.4, +2.0]; ...`."""
    of_levels = "; ".join(
        f"{level}: {_points(difference)}" for level, difference in effects.of_level.items()
    )
    setting = f"points, mean over {' and '.join(effects.others)}; against {effects.reference}"
    return f"Effect of `{effects.field}` on {heading} ({setting}): {of_levels}."


def _points(difference: Difference) -> str:
    text = f"{100 * difference.mean:+.1f} {difference.interval}"
    if difference.num_seeds == 1:
        return f"{text} (one seed)"
    return text if difference.is_distinguishable else f"{text} (indistinguishable)"
