"""The figures of a benchmark, made from records only, beside its records as PNG, SVG and PDF.

`figure`: accuracy along the quantity that the grid varies, with the published curve in grey on a scale of
its own. Where several targets are compared also `pareto`, accuracy against cost of pre-training, and
`curves`, the loss of pre-training and the accuracy during fine-tuning.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mim_bench import proof
from mim_bench.benchmark import (
    Axis,
    Benchmark,
    at_preset,
    config_field,
    load_benchmark,
    row_label,
)
from mim_bench.counterpart import published_rows
from mim_bench.curve import GREY, Curve, Label, Panel, finish, save, style
from mim_bench.error import UserError
from mim_bench.measure import measures
from mim_bench.published import PublishedRow
from mim_bench.record import Record
from mim_bench.resolve import flatten, resolve
from mim_bench.store import Found, benchmark_records, home

_MEASURES = {"finetune": "fine-tuning", "linear": "linear probe"}
"""Measures with a panel, from left to right."""
_ACCURACY = "top-1 accuracy (%)"
_COST = "measured time of pre-training, s per 1000 images\n(under whatever load the machine had)"
_MANY = 6
"""Rows; of more only one a target has learning curves."""
_HEIGHT, _WIDTHS = 3.4, {1: 4.6, 2: 7.2}
"""Inches; width by number of panels."""
_CHARACTERS, _TITLE_CHARACTERS = 17.2, 11.5
"""An inch of a line."""

Points = dict[str, dict[float, list[float]]]
"""Curve -> x -> one value a seed."""
Place = Callable[[PublishedRow], float | None]
"""Where a published row lies along x, if it does."""


def draw(name: str, preset: str, results: Path = Path("results")) -> list[Path]:
    """Writes every figure that a benchmark has beside its records.

    Raises:
        UserError: it has none, or its records are missing or must not be compared.
    """
    benchmark, short = at_preset(load_benchmark(name), preset), Path(name).stem
    if benchmark.figure is None and not _compares_targets(benchmark):
        raise UserError(f"benchmark '{short}' has no figure; its table is `table {short}`")
    found = benchmark_records(name, preset, results)
    proof.check(found)
    folder = home(name, preset, results)
    with style():
        drawn = compose(benchmark, found)
        if not drawn:
            raise UserError(
                f"the records in {folder / 'records'} have nothing to draw; "
                f"`sweep {short} --preset {preset}` runs the protocols that are missing"
            )
        return [path for stem, figure in drawn.items() for path in save(figure, folder / stem)]


def compose(benchmark: Benchmark, found: Sequence[Found]) -> dict[str, Figure]:
    """File stem -> figure, of a benchmark at its preset; inside `curve.style()`."""
    figures: dict[str, Figure | None] = {}
    if benchmark.figure is not None:
        figures["figure"] = _along_grid(benchmark, benchmark.figure, found)
    if _compares_targets(benchmark):
        figures["pareto"] = _pareto(benchmark, found)
        figures["curves"] = _learning(benchmark, found)
    return {stem: figure for stem, figure in figures.items() if figure is not None}


def _compares_targets(benchmark: Benchmark) -> bool:
    trained = set(_MEASURES) & set(benchmark.protocols)
    return len(benchmark.grid.get("target", ())) > 1 and bool(trained)


def _sheet(title: str, found: Sequence[Found], names: Sequence[str]) -> tuple[Figure, list[Panel]]:
    """A figure with a panel a name."""
    width = _WIDTHS[len(names)]
    figure = Figure(figsize=(width, _HEIGHT), layout="constrained")
    title = f"{title}, preset {Path(found[0].record.preset).stem}"
    figure.suptitle(textwrap.fill(title, int(width * _TITLE_CHARACTERS)), x=0.01, ha="left")
    panels = [Panel(axes) for axes in figure.subplots(1, len(names), squeeze=False)[0]]
    for panel, name in zip(panels, names, strict=True):
        panel.axes.set_title(name)
    return figure, panels


def _close(figure: Figure, panels: Sequence[Panel], note: str, found: Sequence[Found]) -> Figure:
    """Puts the note under the figure, and every label in its place."""
    older = sorted({reason for one in found for reason in one.stale})
    note += f" Some records are of an older {', '.join(older)}." if older else ""
    text = textwrap.fill(note, int(figure.get_figwidth() * _CHARACTERS))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color=GREY)
    figure.set_figheight(_HEIGHT + 0.13 * text.count("\n"))
    finish(figure, panels)
    return figure


def _seeds(values: Iterable[Sequence[float]]) -> str:
    """How many seeds are behind the points, and what the bars are."""
    numbers = sorted({len(of_point) for of_point in values})
    if numbers == [1]:
        return "One seed, so no interval."
    count = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"Mean of {count} seeds; bars: 95 % interval (Student's t)."


def _as_curves(points: Points) -> list[Curve]:
    return [
        Curve(label, tuple(sorted(at)), tuple(tuple(at[x]) for x in sorted(at)), number)
        for number, (label, at) in enumerate(points.items())
    ]


# ---- along the grid ----


def _along_grid(benchmark: Benchmark, axis: Axis, found: Sequence[Found]) -> Figure | None:
    """One panel a measure, or a single one along the trained blocks."""
    depth = found[0].cell.config.model.depth
    names = {"": "linear probe, partial and full fine-tuning"} if axis.x == "blocks" else _MEASURES
    data = {key: _points(found, axis.x, key) for key in names}
    data = {key: both for key, both in data.items() if both[0]}
    if not data:
        return None
    figure, panels = _sheet(benchmark.title, found, [names[key] for key in data])
    every, remark = [], ""
    for panel, (key, (points, control)) in zip(panels, data.items(), strict=True):
        x = sorted({x for at in points.values() for x in at})
        if axis.x == "blocks":  # evenly spaced
            points = {s: {float(x.index(k)): v for k, v in at.items()} for s, at in points.items()}
        for curve in _as_curves(points):
            panel.add(curve)
            every += curve.values
        if control and axis.x != "blocks":
            panel.add_control(_as_curves({"random init": control})[0])
        if axis.log:
            panel.axes.set_xscale("log")
        panel.ticks(range(len(x)) if axis.x == "blocks" else x, [f"{value:g}" for value in x])
        panel.axes.set(xlabel=axis.label, ylabel=_ACCURACY)
        table = [row for row in published_rows(benchmark) if row.metric == "top1"]
        if axis.x == "blocks":
            place, scaled, own_x = _by_share_of_depth(table, x, depth)
        else:
            table = [row for row in table if row.protocol == key]
            place, scaled, own_x = _by_column(benchmark, axis, found, table, x)
        if told := _add_published(panel, table, place, own_x):
            remark = (
                f" Grey, with its own scale at the right: {benchmark.rebuilds} as published, "
                f"{told}. Compare its shape, not its level.{scaled}"
            )
    return _close(figure, panels, _seeds(every) + remark, found)


def _points(
    found: Sequence[Found], field: str, wanted: str
) -> tuple[Points, dict[float, list[float]]]:
    """Curve -> x -> values of a measure in per cent, and x -> those of the random initial weights."""
    points: Points = {}
    control: dict[float, list[float]] = {}
    for one in found:
        others = {name: value for name, value in one.cell.place.items() if name != field}
        label = row_label(others) or one.record.target
        for name, measure in measures(one.record).items():
            if field == "blocks":
                x = _blocks(name, one.cell.config.model.depth)
            else:
                x = float(one.cell.place[field]) if name == wanted else None
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
    """k of K published blocks stand at the same share of ours -> place, remark, label of an own axis."""

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
    found: Sequence[Found],
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
    own = nearest.place[axis.x] / nearest.relative[axis.x]
    theirs = [at for row in table if (at := place(own / reference, row)) is not None]
    if theirs and min(max(theirs), x[-1]) - max(min(theirs), x[0]) < 0.5 * (x[-1] - x[0]):
        return partial(place, 1.0), "", axis.label
    return partial(place, own / reference), f" Its {reference:g} stands at {own:g} here.", ""


# ---- accuracy against cost ----


def pretrain_cost(record: Record) -> float | None:
    """Seconds of pre-training per 1000 images, the target's fit shared out over all images seen."""
    facts = record.pretrain
    if facts is None or not facts.images_seen:
        return None
    return 1000 * (facts.seconds + facts.fit.get("fit_seconds", 0.0)) / facts.images_seen


def _pareto(benchmark: Benchmark, found: Sequence[Found]) -> Figure | None:
    """One point a row, in its target's colour; grey steps along the best mean at each cost or less."""
    data: dict[str, dict[str, list[tuple[float, float]]]] = {key: {} for key in _MEASURES}
    scratch: list[float] = []
    targets = {one.cell.label: one.record.target for one in found}
    numbers = {target: number for number, target in enumerate(dict.fromkeys(targets.values()))}
    for one in found:
        cost = pretrain_cost(one.record)
        for key, measure in measures(one.record).items():
            if key == "scratch":
                scratch.append(100 * measure.value)
            elif key in data and cost is not None:
                pairs = data[key].setdefault(one.cell.label, [])
                pairs.append((cost, 100 * measure.value))
    data = {key: of_rows for key, of_rows in data.items() if of_rows}
    if not data:
        return None
    names = [_MEASURES[key] for key in data]
    figure, panels = _sheet(f"{benchmark.title}: accuracy and cost", found, names)
    every, crowded = [], False
    for panel, (key, of_rows) in zip(panels, data.items(), strict=True):
        panel.beside = True
        for label, pairs in of_rows.items():
            costs, values = zip(*pairs, strict=True)
            number = numbers[targets[label]]
            curve = Curve(label, (float(np.mean(costs)),), (values,), number)
            panel.add(curve)
            panel.axes.hlines(curve.mean, min(costs), max(costs), color=curve.color, linewidth=1)
            every.append(values)
        _add_front(panel)
        if crowded := len(of_rows) > len(numbers):
            best: dict[str, Label] = {}
            for label in sorted(panel.labels, key=lambda label: label.y):
                best[targets[label.text]] = label
            panel.labels = list(best.values())
        if scratch and key == "finetune":
            panel.add_level("from scratch", float(np.mean(scratch)))
        panel.axes.set(xlabel=_COST, ylabel=_ACCURACY)
    note = _seeds(every) + (" Bars across: least to greatest." if len(every[0]) > 1 else "")
    note += " Steps: best mean at that cost or less."
    note += " Named: the best row of each target." if crowded else ""
    return _close(figure, panels, note, found)


def _add_front(panel: Panel) -> None:
    ends = sorted((label.x, label.y) for label in panel.labels)
    cost, accuracy = zip(*ends, strict=True)
    best = np.maximum.accumulate(accuracy)
    panel.axes.step(cost, best, where="post", color=GREY, linewidth=0.8, alpha=0.5, zorder=0)


# ---- learning curves ----


def _learning(benchmark: Benchmark, found: Sequence[Found]) -> Figure | None:
    """Loss of pre-training over that of its first epoch; accuracy of fine-tuning on held-out images."""
    kept, fixed = _one_a_target(found)
    losses, accuracies = _by_epoch(kept, fixed)
    data = [
        ("pre-training", "loss / loss of the first epoch", losses),
        ("fine-tuning", "accuracy on held-out training images (%)", accuracies),
    ]
    data = [entry for entry in data if entry[-1]]
    if not data:
        return None
    labels = [label for label in {**losses, **accuracies} if label != "scratch"]
    title = f"{benchmark.title}: learning curves"
    figure, panels = _sheet(title, found, [name for name, _, _ in data])
    for panel, (_, y, points) in zip(panels, data, strict=True):
        for curve in _as_curves(points):
            if curve.label == "scratch":
                panel.add(curve, band=True, color=GREY, line="--")
            else:
                number = labels.index(curve.label)
                panel.add(Curve(curve.label, curve.x, curve.values, number), band=True)
        panel.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.axes.set(xlabel="epoch", ylabel=y)
    count = len({one.record.seed for one in kept})
    note = f"Mean of {count} seeds; band: least to greatest." if count > 1 else "One seed."
    at = row_label({field: kept[0].cell.place[field] for field in fixed})
    return _close(figure, panels, note + (f" At {at}." if at else ""), kept)


def _by_epoch(found: Sequence[Found], fixed: Sequence[str]) -> tuple[Points, Points]:
    """Relative losses of each run, and accuracies of fine-tuning in per cent."""
    losses: Points = {}
    accuracies: Points = {}
    runs = set()
    for one in found:
        record, facts = one.record, one.record.pretrain
        label = row_label({k: v for k, v in one.cell.place.items() if k not in fixed})
        if facts is not None and facts.epoch_losses and record.run_id not in runs:
            runs.add(record.run_id)
            for epoch, loss in facts.epoch_losses:
                at = losses.setdefault(label, {}).setdefault(epoch, [])
                at.append(loss / facts.epoch_losses[0][1])
        if record.protocol in ("finetune", "scratch"):
            label = "scratch" if record.protocol == "scratch" else label
            for epoch, accuracy in enumerate(record.curves.get("model", ()), start=1):
                accuracies.setdefault(label, {}).setdefault(epoch, []).append(100 * accuracy)
    return losses, accuracies


def _one_a_target(found: Sequence[Found]) -> tuple[list[Found], list[str]]:
    """Of many rows those nearest to the preset's own values, and the fields that are fixed by it."""
    kept, first = list(found), found[0].cell
    if len({one.cell.label for one in found}) <= _MANY:
        return kept, []
    own = flatten(resolve(first.config.target.name, first.config.preset).config.model_dump())
    fixed = [field for field in first.place if field != "target"]
    for field in fixed:
        values = list(dict.fromkeys(one.cell.place[field] for one in kept))
        wanted = own.get(config_field(field, first.config))
        if isinstance(wanted, (int, float)):
            wanted = min(values, key=lambda value: abs(value - wanted))
        wanted = wanted if wanted in values else values[0]
        kept = [one for one in kept if one.cell.place[field] == wanted]
    return kept, fixed
