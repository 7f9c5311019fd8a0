"""Does the target matter? The one-sentence answer of a table of targets, with intervals."""

from mim_bench.analysis.difference import Difference
from mim_bench.analysis.table import Table, is_compared

BENCHMARK = "targets"
"""The table that answers it."""


def sentence(table: Table) -> str:
    """What can be told apart from the reference row, and what cannot be at this budget."""
    clauses = []
    for column in table.columns:
        deltas = {
            row.label: row.differences[column.key]
            for row in table.rows
            if is_compared(column.key) and column.key in row.differences
        }
        if deltas:
            clauses.append(f"{column.heading.removesuffix(' %')}: {_clause(deltas)}")
    if not clauses:
        return ""
    seeds = max(row.num_seeds for row in table.rows)
    below = f"Below the gate: {table.below_gate}. " if table.below_gate else ""
    return f"{below}At preset {table.preset}, {seeds} seeds, against {table.reference}. {'; '.join(clauses)}."


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
