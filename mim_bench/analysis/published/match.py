"""The published number next to each measured one, matched by setting, never by hand."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mim_bench.analysis.published.rows import PublishedRow, rows
from mim_bench.config.benchmark import Benchmark
from mim_bench.config.cells import Cell

_COST_METRIC = {"flops_ratio": "flops_ratio", "hours": "hours", "speed_up": "speedup"}


def published_rows(benchmark: Benchmark) -> list[PublishedRow]:
    """Every published row of the tables that the benchmark rebuilds."""
    if benchmark.published is None:
        return []
    where = benchmark.published.where
    return [row for row in rows(benchmark.published.tables) if _agrees(row, where)]


def counterparts(
    benchmark: Benchmark, cell: Cell, measure: str, available: list[PublishedRow]
) -> list[PublishedRow]:
    """The published rows that say of the cell's setting what the measure says of ours."""
    assert benchmark.published is not None
    if measure in benchmark.published.shared:
        expected: Mapping[str, str | float] | None = benchmark.published.shared[measure]
    else:
        expected = _wanted(benchmark, cell)
    if not expected:
        return []
    return [row for row in available if _measures(row, measure) and _agrees(row, expected)]


def _wanted(benchmark: Benchmark, cell: Cell) -> dict[str, str | float] | None:
    """Column -> value of the counterpart; None where the file names none for this cell."""
    published = benchmark.published
    assert published is not None
    expected: dict[str, str | float] = dict(cell.variant.published) if cell.variant else {}
    for field, column in published.columns.items():
        value: Any = cell.point.get(field)
        if column in published.reference:
            if field not in cell.relative:
                return None
            value = cell.relative[field] * published.reference[column]
        if field in published.values:
            value = published.values[field].get(str(value))
        if value is None:
            return None
        expected[column] = value
    return expected


def _agrees(row: PublishedRow, expected: Mapping[str, str | float]) -> bool:
    return all(_equal(getattr(row, column), value, column) for column, value in expected.items())


def _equal(published: Any, expected: str | float, column: str) -> bool:
    if published is None:
        return False
    if isinstance(expected, str):
        return (
            str(published).startswith(expected)
            if column in ("variant", "method")
            else published == expected
        )
    return math.isclose(float(published), expected)


def _measures(row: PublishedRow, measure: str) -> bool:
    """True if the published number is of the same kind as a measure here."""
    variant, is_top1 = row.variant or "", row.metric.startswith("top1")
    if measure in _COST_METRIC:
        return row.metric == _COST_METRIC[measure]
    if row.protocol == "partial-k":
        ends = {"linear": "= linear probing", "finetune": "= full fine-tuning"}
        if measure in ends:
            return ends[measure] in variant
        blocks = measure.removeprefix("partial ")
        return measure.startswith("partial ") and variant.startswith(f"k={blocks} ")
    if measure == "scratch":
        return row.protocol == "other" and is_top1
    return row.protocol == measure and is_top1


def setting(row: PublishedRow, columns: Iterable[str] = ()) -> str:
    """Setting of a published row in one line, for a table of its own.

    Args:
        columns: those that the benchmark's rows differ in; their values are part of the setting.
    """
    epochs = f"{row.pretrain_epochs} epochs" if row.pretrain_epochs else None
    varied = [
        f"{column.replace('_', ' ')} {value:g}" if isinstance(value, (int, float)) else str(value)
        for column in columns
        if column not in ("target", "pretrain_epochs", "variant")
        and (value := getattr(row, column)) is not None
    ]
    parts = (row.method, row.target, row.backbone, epochs, row.variant, *varied)
    return ", ".join(part for part in parts if part)
