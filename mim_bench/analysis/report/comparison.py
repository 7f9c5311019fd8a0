"""The rows of a table against one another, under one measure after the other: dots, pairs, ranks.

No single rank is given: rows that cannot be separated at the budget are bracketed, and places are shown for every
measure, because one choice of readout alone can reorder the rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mim_bench.analysis import difference
from mim_bench.analysis.difference import Difference
from mim_bench.analysis.grid import MISSING, Grid, TableCell
from mim_bench.analysis.report.drawing import Dots, dot_plot, rank_plot
from mim_bench.analysis.table import CONTROL, Table
from mim_bench.config.protocol import PROTOCOLS

_MOST_IN_MATRIX = 10
"""Rows: of more the pairs fill no page that anybody reads."""
_MOST_NAMED = 6
Pairs = Mapping[tuple[str, str], Difference]


@dataclass(frozen=True)
class Comparison:
    """Every row under one measure."""

    key: str
    heading: str
    sentence: str
    """Sentence on the pairs of rows that cannot be separated at this budget."""
    dots: Markup
    pairs: Grid | None
    """Row minus column; unset where there are too many rows."""


def comparisons(table: Table, colors: Mapping[str, int]) -> list[Comparison]:
    """One for each measure of accuracy that at least two encoders have."""
    sections = []
    for key, heading in _measures(table).items():
        correct = {
            label: row.correctness(key)
            for label, row in table.by_label.items()
            if not row.is_baseline and row.values(key)
        }
        if len(correct) > 1:
            pairs = difference.all_pairs(correct)
            order = sorted(correct, key=lambda label: -table.row(label).values[key].mean)
            matrix = _matrix(order, pairs) if len(order) <= _MOST_IN_MATRIX else None
            dots = _dots(table, key, order, pairs, colors)
            sections.append(Comparison(key, heading, _sentence(pairs), dots, matrix))
    return sections


def ranks(
    table: Table, comparisons: Sequence[Comparison], colors: Mapping[str, int]
) -> Markup | None:
    """Chart of the ranks of rows above the gate by measure; unset for a single measure or row, or more rows
    than a page holds."""
    labels = [row.label for row in table.rows if not row.is_baseline and not row.below_gate]
    if len(comparisons) < 2 or not 2 <= len(labels) <= 2 * _MOST_IN_MATRIX:
        return None
    ranks_of: dict[str, list[int | None]] = {label: [] for label in labels}
    for comparison in comparisons:
        means = {
            label: value.mean
            for label in labels
            if (value := table.row(label).values.get(comparison.key))
        }
        order = sorted(means, key=lambda label: -means[label])
        for label in labels:
            ranks_of[label].append(order.index(label) + 1 if label in means else None)
    return rank_plot([comparison.heading for comparison in comparisons], ranks_of, dict(colors))


def _measures(table: Table) -> dict[str, str]:
    """Key -> heading, the primary measure first, other readouts last."""
    return {
        column.key: column.heading.removesuffix(" %")
        for column in table.columns
        if column.is_fraction
        and (spec := PROTOCOLS.get(column.key.split()[0]))
        and spec.is_compared
        and not ("@" in column.key and "%" in column.key)
    }


def _sentence(pairs: Pairs) -> str:
    inseparable = {
        pair: difference for pair, difference in pairs.items() if not difference.is_distinguishable
    }
    if not inseparable:
        return "Every two rows can be separated."
    if max(difference.num_seeds for difference in pairs.values()) == 1:
        return (
            "A single seed separates nothing: intervals hold the chance of the test images alone."
        )
    clauses = [
        f"{a} and {b} ({100 * abs(difference.mean):.1f} apart, least detectable {100 * difference.detectable:.1f})"
        for (a, b), difference in sorted(inseparable.items(), key=lambda item: abs(item[1].mean))
    ]
    more = f"; {len(clauses) - _MOST_NAMED} more pairs" if len(clauses) > _MOST_NAMED else ""
    return f"Cannot be separated at this budget: {'; '.join(clauses[:_MOST_NAMED])}{more}."


def _between(pairs: Pairs, a: str, b: str) -> tuple[Difference, int] | None:
    """The difference of two rows and its sign."""
    if (a, b) in pairs:
        return pairs[a, b], 1
    return (pairs[b, a], -1) if (b, a) in pairs else None


def _matrix(order: Sequence[str], pairs: Pairs) -> Grid:
    rows = [[TableCell(a), *(_pair_cell(pairs, a, b) for b in order)] for a in order]
    return Grid(["row minus column", *(f"Δ to {label}" for label in order)], rows)


def _pair_cell(pairs: Pairs, a: str, b: str) -> TableCell:
    pair = _between(pairs, a, b)
    if pair is None:
        return MISSING
    difference, sign = pair
    mean = 100 * sign * difference.mean
    low, high = sorted((100 * sign * difference.low, 100 * sign * difference.high))
    detail = f"[{low:+.1f}, {high:+.1f}]"
    if not difference.is_distinguishable:
        detail += f" detectable {100 * difference.detectable:.1f}"
    return TableCell(f"{mean:+.1f}", mean, detail, is_faint=not difference.is_distinguishable)


def _dots(
    table: Table, key: str, order: Sequence[str], pairs: Pairs, colors: Mapping[str, int]
) -> Markup:
    rows = []
    for label in order:
        row = table.row(label)
        value = row.values[key]
        seeds = tuple(100 * seed_value for seed_value in value.of_seed.values())
        half = None if value.half is None else 100 * value.half
        rows.append(Dots(label, 100 * value.mean, half, seeds, colors[label], bool(row.below_gate)))
    levels = {
        row.label.removesuffix(" (control)").partition(",")[0]: 100 * row.values[key].mean
        for row in table.rows
        if key in row.values and (row.label == CONTROL or _is_fixed(table, row.label))
    }
    return dot_plot(rows, levels, _groups(order, pairs))


def _is_fixed(table: Table, label: str) -> bool:
    return label in table.by_label and table.by_label[label].is_fixed_image


def _groups(order: Sequence[str], pairs: Pairs) -> list[range]:
    """Runs of rows, by falling mean, of which no two can be separated; each as long as it can be."""

    def is_alike(a: str, b: str) -> bool:
        pair = _between(pairs, a, b)
        return pair is None or not pair[0].is_distinguishable

    groups: list[range] = []
    for start in range(len(order)):
        end = start + 1
        while end < len(order) and all(
            is_alike(order[index], order[end]) for index in range(start, end)
        ):
            end += 1
        if end - start > 1 and not (groups and groups[-1].stop >= end):
            groups.append(range(start, end))
    return groups
