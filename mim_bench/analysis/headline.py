"""Does the target matter? The one-sentence answer of a table of targets, with intervals."""

from collections.abc import Sequence

from mim_bench.analysis.difference import Difference
from mim_bench.analysis.table import Column, Table, is_compared

BENCHMARK = "targets"
"""The table that answers it."""


def sentence(table: Table) -> str:
    """What can be told apart from the reference row, and what cannot be at this budget.

    The first measure, which is the preset's primary one, with its means; measures on which nothing can be told apart
    are named together.
    """
    seeds = max((row.num_seeds for row in table.rows if not row.is_baseline), default=0)
    below = f"Below the gate: {table.below_gate}. " if table.below_gate else ""
    if seeds == 1 and (first := next((c for c in table.columns if is_compared(c.key)), None)):
        return (
            f"{below}At preset {table.preset}, 1 seed: {_means(table, first)}. "
            "A single seed separates nothing: the chance of training is in no interval."
        )
    told, alike = [], dict[tuple[str, ...], list[tuple[Column, float]]]()
    for column in table.columns:
        deltas = {
            row.label: row.differences[column.key]
            for row in table.rows
            if is_compared(column.key) and column.key in row.differences and not row.is_baseline
        }
        if not deltas:
            continue
        if not told and not alike:
            told.append(f"{_means(table, column)}: {_clause(deltas)}")
        elif any(one.is_distinguishable for one in deltas.values()):
            told.append(f"{_name(column)}: {_clause(deltas)}")
        else:
            least = max(one.detectable for one in deltas.values())
            alike.setdefault(tuple(deltas), []).append((column, least))
    if not told:
        return ""
    told += [_together(labels, columns) for labels, columns in alike.items()]
    seeds = max(row.num_seeds for row in table.rows)
    counted = f"{seeds} seed" + "s" * (seeds > 1)
    below = f"Below the gate: {table.below_gate}. " if table.below_gate else ""
    return (
        f"{below}At preset {table.preset}, {counted}, against {table.reference}. {'; '.join(told)}."
    )


def _name(column: Column) -> str:
    return column.heading.removesuffix(" %")


def _means(table: Table, column: Column) -> str:
    """`linear (hog 58.5, pixel 56.1, raw pixels 41.3 %)`: every row of the measure, the greatest first."""
    means = {
        row.label: row.values[column.key].mean
        for row in table.rows
        if column.key in row.values and not row.label.endswith("as a feature")
    }
    order = sorted(means, key=lambda label: -means[label])
    shown = ", ".join(f"{label.partition(',')[0]} {100 * means[label]:.1f}" for label in order)
    return f"{_name(column)} ({shown} %)"


def _together(labels: Sequence[str], columns: Sequence[tuple[Column, float]]) -> str:
    """`kNN, low-shot: cannot be separated at this budget: hog, dvae (least detectable 1.5 to 2.3 points)`."""
    names = ", ".join(_name(column) for column, _ in columns)
    least = [100 * detectable for _, detectable in columns]
    span = f"{least[0]:.1f}" if len(least) == 1 else f"{min(least):.1f} to {max(least):.1f}"
    return f"{names}: cannot be separated at this budget: {', '.join(labels)} (least detectable {span} points)"


def _clause(deltas: dict[str, Difference]) -> str:
    """`hog +1.0 points [+0.4, +1.6]; cannot be separated at this budget: dvae (least detectable 2.7 points)`."""
    apart = [
        f"{label} {100 * one.mean:+.1f} points [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
        for label, one in deltas.items()
        if one.is_distinguishable
    ]
    alike = [label for label, one in deltas.items() if not one.is_distinguishable]
    if alike:
        least = max(deltas[label].detectable for label in alike)
        apart.append(
            f"cannot be separated at this budget: {', '.join(alike)} (least detectable {100 * least:.1f} points)"
        )
    return ", ".join(apart)
