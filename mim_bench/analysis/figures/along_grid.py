"""The figure along the quantity that a benchmark's grid varies: accuracy, one panel a measure, and next to each the
published curve in grey in a panel of its own, as two scales in one would look like agreement.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mim_bench.analysis import gates
from mim_bench.analysis.figures.layout import (
    ACCURACY,
    Points,
    as_curves,
    close,
    figure_of,
    panel_titles,
    seeds_behind,
)
from mim_bench.analysis.figures.panel import Curve, Panel
from mim_bench.analysis.published.match import published_rows
from mim_bench.analysis.published.rows import PublishedRow
from mim_bench.analysis.table import half_interval
from mim_bench.config.benchmark import Axis, Benchmark
from mim_bench.config.cells import row_label
from mim_bench.records.store import CellRecord

Placed = list[tuple[float, PublishedRow]]
"""Published rows and where they lie along x."""


def along_grid(benchmark: Benchmark, axis: Axis, entries: Sequence[CellRecord]) -> Figure | None:
    """Panels by measure, or a single one along the trained blocks, each followed by the published one."""
    names = (
        {"": "linear probe, partial and full fine-tuning"} if axis.x == "blocks" else panel_titles()
    )
    data = {key: points for key in names if (points := _points(entries, axis.x, key))}
    if not data:
        return None
    published = {key: _published(benchmark, axis, key) for key in data}
    titles = [
        title
        for key in data
        for title in (names[key], *(["as published"] if published[key] else []))
    ]
    figure, panels = figure_of(benchmark.title, entries, titles)
    all_values, published_note, panel_iterator = [], "", iter(panels)
    targets = {_label(entry, axis.x): entry.record.target for entry in entries}
    for key, points in data.items():
        panel = next(panel_iterator)
        all_values += _add_measured(panel, axis, points, targets)
        if (control := _control(entries, key)) and axis.x != "blocks":
            panel.add_level(*control)
        if published[key]:
            published_note = _add_published(
                next(panel_iterator), axis, published[key], benchmark.rebuilds
            )
    return close(
        figure, panels, seeds_behind(all_values) + published_note + gates.remark(entries), entries
    )


def _add_measured(
    panel: Panel, axis: Axis, points: Points, targets: Mapping[str, str]
) -> list[tuple[float, ...]]:
    """Draws the curves; returns the values behind each of their points."""
    x = sorted({x for of_x in points.values() for x in of_x})
    if axis.x == "blocks":  # evenly spaced
        points = {s: {float(x.index(k)): v for k, v in of_x.items()} for s, of_x in points.items()}
    curves = as_curves(points, targets)
    for curve in curves:
        panel.add(curve)
    _finish_x(panel, axis, x)
    panel.axes.set(xlabel=axis.label, ylabel=ACCURACY)
    return [values for curve in curves for values in curve.values]


def _finish_x(panel: Panel, axis: Axis, x: Sequence[float]) -> None:
    if axis.log:
        panel.axes.set_xscale("log")
    panel.ticks(range(len(x)) if axis.x == "blocks" else x, [f"{value:g}" for value in x])


def _points(entries: Sequence[CellRecord], field: str, measure_key: str) -> Points:
    """Curve -> x -> values of a measure in per cent."""
    points: Points = {}
    for entry in entries:
        for name, measure in entry.measures.items():
            if field == "blocks":
                x = _blocks(name, entry.cell.config.model.depth)
            else:
                x = float(entry.cell.point[field]) if name == measure_key else None
            if x is not None:
                of_x = points.setdefault(_label(entry, field), {})
                of_x.setdefault(x, []).append(100 * measure.value)
    return points


def _label(entry: CellRecord, field: str) -> str:
    """Curve of a record."""
    others = {name: value for name, value in entry.cell.point.items() if name != field}
    return row_label(others) or entry.record.target


def _control(entries: Sequence[CellRecord], key: str) -> tuple[str, float] | None:
    """Name and height of the line of the random initial weights, where they are the same all along the grid."""
    of_seed: dict[int, set[float]] = {}
    for entry in entries:
        measure = entry.measures.get(key)
        if measure is not None and measure.control is not None:
            of_seed.setdefault(entry.record.seed, set()).add(100 * measure.control)
    if not of_seed or any(len(values) > 1 for values in of_seed.values()):
        return None
    control = [value for values in of_seed.values() for value in values]
    half = half_interval(control)
    interval = "" if half is None else f" ± {half:.1f}"
    mean = float(np.mean(control))
    return f"random init {mean:.1f}{interval}", mean


def _blocks(measure: str, depth: int) -> float | None:
    """Trained last blocks that a measure is of, if any."""
    if match := re.fullmatch(r"partial ([\d.]+)", measure):
        return float(match[1])
    return {"linear": 0.0, "finetune": float(depth)}.get(measure)


# ---- the published curve ----


def _published(benchmark: Benchmark, axis: Axis, key: str) -> dict[str, Placed]:
    """Method -> its published rows of a measure that lie somewhere along x."""
    column = benchmark.published.columns.get(axis.x) if benchmark.published else None
    methods: dict[str, Placed] = {}
    for row in published_rows(benchmark):
        if row.metric != "top1" or (key and row.protocol != key):
            continue
        if axis.x == "blocks":
            match = re.search(r"k=([\d.]+)", row.variant or "")
            x = float(match[1]) if match else None
        else:
            x = None if column is None else getattr(row, column)
        if x is not None:
            methods.setdefault(row.method, []).append((x, row))
    return methods


def _add_published(panel: Panel, axis: Axis, methods: dict[str, Placed], rebuilds: str) -> str:
    """Draws it; returns what the note must say of it."""
    x = sorted({x_published for placed in methods.values() for x_published, _ in placed})
    rows = [row for placed in methods.values() for _, row in placed]
    for number, (method, placed) in enumerate(methods.items()):
        x_published, of_method = zip(*sorted(placed, key=lambda pair: pair[0]), strict=True)
        x_of_method = (
            tuple(float(x.index(k)) for k in x_published) if axis.x == "blocks" else x_published
        )
        curve = Curve(method, x_of_method, tuple((row.value,) for row in of_method), number)
        panel.add_published(curve, [row.status != "confirmed" for row in of_method])
    _finish_x(panel, axis, x)
    panel.axes.set(
        xlabel=axis.label, ylabel=f"top-1 (%), {rows[0].backbone}, {rows[0].pretrain_data}"
    )
    targets = " and ".join(dict.fromkeys(row.target or "unknown" for row in rows))
    status = sorted({row.status for row in rows} - {"confirmed"})
    hollow = f"; open: {' or '.join(status)}" if status else ""
    return f" Grey: {rebuilds} as published, target {targets}{hollow}. Compare its shape, not its level."
