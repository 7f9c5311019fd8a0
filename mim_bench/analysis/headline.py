"""Does the target matter? The headline of a table of targets, with intervals."""

from collections.abc import Collection, Mapping

from mim_bench.analysis.column import Column, is_compared
from mim_bench.analysis.difference import Difference
from mim_bench.analysis.gates import BELOW
from mim_bench.analysis.table import Row, Table

BENCHMARK = "targets"
"""Benchmark whose headline it is."""


def sentence(table: Table) -> str:
    """Sentence on the rows that can be separated from the reference row, and those that cannot at this budget.

    First the preset's primary measure, with means and intervals; then each row over all measures.
    """
    columns = [column for column in table.columns if is_compared(column.key)]
    rows = [row for row in table.rows if not row.is_baseline]
    deltas: dict[str, dict[str, Difference]] = {
        column.heading.removesuffix(" %"): {
            _shown(row): row.differences[column.key]
            for row in rows
            if column.key in row.differences
        }
        for column in columns
    }
    deltas = {name: of_label for name, of_label in deltas.items() if of_label}
    if not deltas:
        return ""
    seeds = max(row.num_seeds for row in rows)
    below = f"Below the gate: {table.below_gate}. " if table.below_gate else ""
    opening = f"{below}At preset {table.preset}, {seeds} seed{'s' * (seeds > 1)}"
    if table.exploratory and seeds > 1:
        opening = f"{below}Exploratory, {table.exploratory}: at preset {table.preset}"
    if seeds == 1:
        return (
            f"{opening}: {_means(table, columns[0])}. A single seed separates nothing: the chance of training is in no "
            "interval."
        )
    first = next(iter(deltas))
    parts = [
        f"{opening}: {_means(table, columns[0])}",
        f"Against {table.reference} on {first}: {_clause(deltas[first])}",
    ]
    if len(deltas) > 1:
        labels = dict.fromkeys(label for of_label in deltas.values() for label in of_label)
        clause, *clauses = [_over_measures(label, deltas) for label in labels]
        parts += [f"Over all {len(deltas)} measures {clause}", *clauses]
    return ". ".join(parts) + "."


def _over_measures(label: str, deltas: Mapping[str, Mapping[str, Difference]]) -> str:
    """`norm_pixel is better on kNN (+2.3), worse on linear, low-shot (-0.9 to -1.3), not separated on attentive`."""
    of_measure = {name: of_label[label] for name, of_label in deltas.items() if label in of_label}
    groups = {
        "better": {n: d for n, d in of_measure.items() if d.is_distinguishable and d.mean > 0},
        "worse": {n: d for n, d in of_measure.items() if d.is_distinguishable and d.mean < 0},
    }
    clauses = [
        f"{verdict} on {_listed(differences, of_measure, all_='each')} ({_span(differences)} points)"
        for verdict, differences in groups.items()
        if differences
    ]
    inseparable = [
        name for name, difference in of_measure.items() if not difference.is_distinguishable
    ]
    if inseparable:
        clauses.append(f"not separated on {_listed(inseparable, of_measure, all_='any')}")
    return f"{label} is {', '.join(clauses)}"


def _listed(names: Collection[str], measures: Collection[str], *, all_: str) -> str:
    """Names of measures, or one word for all of them."""
    return all_ if len(names) == len(measures) else ", ".join(names)


def _span(differences: Mapping[str, Difference]) -> str:
    """`+1.6 to +5.1`, the least first."""
    order = sorted((100 * difference.mean for difference in differences.values()), key=abs)
    least, most = f"{order[0]:+.1f}", f"{order[-1]:+.1f}"
    return least if least == most else f"{least} to {most}"


def _shown(row: Row) -> str:
    return f"{row.label} ({BELOW})" if row.below_gate else row.label


def _name(column: Column) -> str:
    return column.heading.removesuffix(" %")


def _means(table: Table, column: Column) -> str:
    """`linear (hog 58.5, pixel 56.1, raw pixels 41.3 %)`: every row of the measure, the greatest first."""
    means = {
        _shown(row): row.values[column.key].mean
        for row in table.rows
        if column.key in row.values and not row.label.endswith("as a feature")
    }
    order = sorted(means, key=lambda label: -means[label])
    values = ", ".join(f"{label.partition(',')[0]} {100 * means[label]:.1f}" for label in order)
    return f"{_name(column)} ({values} %)"


def _clause(deltas: Mapping[str, Difference]) -> str:
    """`hog +1.0 points [+0.4, +1.6]; cannot be separated at this budget: dvae (least detectable 2.7 points)`."""
    separated = [
        f"{label} {100 * difference.mean:+.1f} points {difference.interval}"
        for label, difference in deltas.items()
        if difference.is_distinguishable
    ]
    inseparable = [
        label for label, difference in deltas.items() if not difference.is_distinguishable
    ]
    if inseparable:
        detectable = max(deltas[label].detectable for label in inseparable)
        names = ", ".join(inseparable)
        separated.append(
            f"cannot be separated at this budget: {names} (least detectable {100 * detectable:.1f} points)"
        )
    return ", ".join(separated)
