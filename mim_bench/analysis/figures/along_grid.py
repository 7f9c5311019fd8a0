"""The figure along the quantity that a benchmark's grid varies: accuracy, one panel a measure, and the published
curve in grey on a scale of its own.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from mim_bench.analysis.figures.layout import (
    ACCURACY,
    Points,
    as_curves,
    close,
    panel_titles,
    seeds_behind,
    sheet,
)
from mim_bench.analysis.figures.panel import Curve, Panel
from mim_bench.analysis.published.match import published_rows
from mim_bench.analysis.published.rows import PublishedRow
from mim_bench.config.benchmark import Axis, Benchmark, row_label
from mim_bench.records.measure import measures
from mim_bench.records.store import CellRecord

Place = Callable[[PublishedRow], float | None]
"""Where a published row lies along x, if it does."""


def along_grid(benchmark: Benchmark, axis: Axis, found: Sequence[CellRecord]) -> Figure | None:
    """One panel a measure, or a single one along the trained blocks."""
    depth = found[0].cell.config.model.depth
    names = (
        {"": "linear probe, partial and full fine-tuning"} if axis.x == "blocks" else panel_titles()
    )
    data = {key: _points(found, axis.x, key) for key in names}
    data = {key: both for key, both in data.items() if both[0]}
    if not data:
        return None
    figure, panels = sheet(benchmark.title, found, [names[key] for key in data])
    every, remark = [], ""
    for panel, (key, (points, control)) in zip(panels, data.items(), strict=True):
        x = sorted({x for at in points.values() for x in at})
        if axis.x == "blocks":  # evenly spaced
            points = {s: {float(x.index(k)): v for k, v in at.items()} for s, at in points.items()}
        for curve in as_curves(points):
            panel.add(curve)
            every += curve.values
        if control and axis.x != "blocks":
            panel.add_control(as_curves({"random init": control})[0])
        if axis.log:
            panel.axes.set_xscale("log")
        panel.ticks(range(len(x)) if axis.x == "blocks" else x, [f"{value:g}" for value in x])
        panel.axes.set(xlabel=axis.label, ylabel=ACCURACY)
        table = [row for row in published_rows(benchmark) if row.metric == "top1"]
        if axis.x == "blocks":
            place, scaled, own_x = _by_share_of_depth(table, x, depth)
        else:
            table = [row for row in table if row.protocol == key]
            place, scaled, own_x = _by_column(benchmark, axis, found, table, x)
        if remark_on_rows := _add_published(panel, table, place, own_x):
            remark = (
                f" Grey, with its own scale at the right: {benchmark.rebuilds} as published, "
                f"{remark_on_rows}. Compare its shape, not its level.{scaled}"
            )
    return close(figure, panels, seeds_behind(every) + remark, found)


def _points(
    found: Sequence[CellRecord], field: str, wanted: str
) -> tuple[Points, dict[float, list[float]]]:
    """Curve -> x -> values of a measure in per cent, and x -> those of the random initial weights."""
    points: Points = {}
    control: dict[float, list[float]] = {}
    for one in found:
        others = {name: value for name, value in one.cell.point.items() if name != field}
        label = row_label(others) or one.record.target
        for name, measure in measures(one.record).items():
            if field == "blocks":
                x = _blocks(name, one.cell.config.model.depth)
            else:
                x = float(one.cell.point[field]) if name == wanted else None
            if x is None:
                continue
            points.setdefault(label, {}).setdefault(x, []).append(100 * measure.value)
            if measure.control is not None:
                control.setdefault(x, []).append(100 * measure.control)
    return points, control


def _blocks(measure: str, depth: int) -> float | None:
    """Trained last blocks that a measure is of, if any."""
    if match := re.fullmatch(r"partial ([\d.]+)", measure):
        return float(match[1])
    return {"linear": 0.0, "finetune": float(depth)}.get(measure)


# ---- the published curve ----


def _add_published(panel: Panel, table: Sequence[PublishedRow], place: Place, own_x: str) -> str:
    """Draws it; returns what the note must say of it."""
    methods: dict[str, list[tuple[float, PublishedRow]]] = {}
    for row in table:
        if (x := place(row)) is not None:
            methods.setdefault(row.method, []).append((x, row))
    if not methods:
        return ""
    names, first = " and ".join(methods), next(iter(methods.values()))[0][1]
    scale = f"{names}, {first.backbone}, {first.pretrain_data}\n(published), top-1 (%), own scale"
    own_x = own_x and f"{names}, published: {own_x}"
    drawn: list[PublishedRow] = []
    for number, (method, placed) in enumerate(methods.items()):
        x, of_method = zip(*sorted(placed, key=lambda pair: pair[0]), strict=True)
        is_open = [row.status != "confirmed" for row in of_method]
        curve = Curve(method, x, tuple((row.value,) for row in of_method), number)
        panel.add_published(curve, is_open, scale=scale, own_x=own_x)
        drawn += of_method
    targets = dict.fromkeys(row.target or "unknown" for row in drawn)
    status = sorted({row.status for row in drawn} - {"confirmed"})
    return f"target {' and '.join(targets)}" + (f"; open: {' or '.join(status)}" if status else "")


def _by_share_of_depth(
    table: Sequence[PublishedRow], x: Sequence[float], depth: int
) -> tuple[Place, str, str]:
    """k of K published blocks are drawn at the same fraction of our depth -> place, remark, label of an own axis."""

    def blocks(row: PublishedRow) -> float:
        match = re.search(r"k=([\d.]+)", row.variant or "")
        assert match is not None, row.variant
        return float(match[1])

    def place(row: PublishedRow) -> float:
        return float(np.interp(blocks(row) / whole * depth, x, range(len(x))))

    whole = max(map(blocks, table), default=1.0)
    return place, f" Its {whole:g} blocks are spread over the {depth} here.", ""


def _by_column(
    benchmark: Benchmark,
    axis: Axis,
    found: Sequence[CellRecord],
    table: Sequence[PublishedRow],
    x: list[float],
) -> tuple[Place, str, str]:
    """At the value published, scaled as the grid is to the preset; on its own axis if that ends up elsewhere."""
    published = benchmark.published
    column = published.columns.get(axis.x) if published else None
    if published is None or column is None:
        return lambda row: None, "", ""

    def place(factor: float, row: PublishedRow) -> float | None:
        value = getattr(row, column)
        return None if value is None else factor * value

    reference = published.reference.get(column)
    cells = [one.cell for one in found if axis.x in one.cell.relative]
    if reference is None or not cells:
        return partial(place, 1.0), "", ""
    nearest = min(cells, key=lambda cell: abs(cell.relative[axis.x] - 1))
    own = nearest.point[axis.x] / nearest.relative[axis.x]
    theirs = [at for row in table if (at := place(own / reference, row)) is not None]
    if theirs and min(max(theirs), x[-1]) - max(min(theirs), x[0]) < 0.5 * (x[-1] - x[0]):
        return partial(place, 1.0), "", axis.label
    return partial(place, own / reference), f" Its {reference:g} stands at {own:g} here.", ""
