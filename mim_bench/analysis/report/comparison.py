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
_MOST_BRACKETS = 6
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


def comparisons(table: Table, looks: Mapping[str, int]) -> list[Comparison]:
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
            groups = _groups(order, pairs)
            dots = _dots(table, key, order, groups, looks)
            sentence = _sentence(pairs) + _without_bracket(groups)
            sections.append(Comparison(key, heading, sentence, dots, matrix))
    return sections


def ranks(
    table: Table, comparisons: Sequence[Comparison], looks: Mapping[str, int]
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
    return rank_plot(
        [comparison.heading for comparison in comparisons],
        {label: places for label, places in ranks_of.items() if any(places)},
        {label: looks.get(label) for label in labels},
    )


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


def _without_bracket(groups: Sequence[Sequence[int]]) -> str:
    left_out = len(groups) - _MOST_BRACKETS
    return f" The {_MOST_BRACKETS} largest sets have brackets, {left_out} more have none." * (
        left_out > 0
    )


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
    table: Table,
    key: str,
    order: Sequence[str],
    groups: list[list[int]],
    looks: Mapping[str, int],
) -> Markup:
    rows = []
    for label in order:
        row = table.row(label)
        value = row.values[key]
        seeds = tuple(100 * seed_value for seed_value in value.of_seed.values())
        half = None if value.half is None else 100 * value.half
        look = looks.get(label)
        rows.append(Dots(label, 100 * value.mean, half, seeds, look, bool(row.below_gate)))
    return dot_plot(rows, _levels(table, key), sorted(groups[:_MOST_BRACKETS]))


def _levels(table: Table, key: str) -> dict[str, float]:
    """Name -> accuracy of what needs no pre-training; of the targets as features the best alone."""
    means = {
        row.label: 100 * row.values[key].mean
        for row in table.rows
        if row.is_baseline and key in row.values
    }
    features = [
        label for label in means if label != CONTROL and not table.by_label[label].is_fixed_image
    ]
    others = sorted(features, key=lambda label: -means[label])[1:]
    return {
        label.removesuffix(" (control)").partition(",")[0]: mean
        for label, mean in means.items()
        if label not in others
    }


def _groups(order: Sequence[str], pairs: Pairs) -> list[list[int]]:
    """Places in `order` of rows of which no two can be separated, each set as large as it can be; the largest first.

    The maximal cliques, after Bron and Kerbosch (1973) with a pivot.
    """

    def is_alike(a: str, b: str) -> bool:
        pair = _between(pairs, a, b)
        return pair is None or not pair[0].is_distinguishable

    alike = [
        {other for other, label in enumerate(order) if label != own and is_alike(own, label)}
        for own in order
    ]
    groups: list[list[int]] = []

    def grow(group: list[int], candidates: set[int], seen: set[int]) -> None:
        if not candidates | seen:
            groups.append(sorted(group))
            return
        pivot = max(candidates | seen, key=lambda place: len(alike[place] & candidates))
        for place in sorted(candidates - alike[pivot]):
            grow([*group, place], candidates & alike[place], seen & alike[place])
            candidates, seen = candidates - {place}, seen | {place}

    grow([], set(range(len(order))), set())
    return sorted(
        (group for group in groups if len(group) > 1), key=lambda group: (-len(group), group)
    )
