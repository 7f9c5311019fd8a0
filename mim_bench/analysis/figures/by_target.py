"""The figures of a benchmark that compares targets: accuracy against cost of pre-training (Pareto), and learning
curves, the loss of pre-training and the accuracy during fine-tuning.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mim_bench.analysis import gates
from mim_bench.analysis.figures.color import look_numbers
from mim_bench.analysis.figures.label import Label
from mim_bench.analysis.figures.layout import (
    ACCURACY,
    Points,
    as_curves,
    close,
    figure_of,
    panel_titles,
    seeds_behind,
)
from mim_bench.analysis.figures.panel import GREY, Curve, Panel
from mim_bench.analysis.row import span, total_tflops
from mim_bench.config.benchmark import Benchmark
from mim_bench.config.cells import config_field, row_label
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.resolve import flatten, resolve
from mim_bench.records.store import CellRecord

_COSTS = {
    "pareto": "measured time of a training step, s per 1000 images\n(alone on the machine; without a target's fit)",
    "compute": "TFLOPs of pre-training, target, teacher and fit together",
}
"""File stem -> what is along x."""
_HIGHEST = 1.5
"""Highest loss, relative to that of the mean predictor, that is drawn."""
_SEEN = 0.01
"""Least length of a bar across, over that of the axis."""
_MANY = 6
"""Rows; of more only one a target has learning curves."""


def compares_targets(benchmark: Benchmark) -> bool:
    """True if it has these figures."""
    trained = set(panel_titles()) & set(benchmark.protocols)
    return len(benchmark.grid.get("target", ())) > 1 and bool(trained)


# ---- accuracy against cost ----


def costs(entries: Sequence[CellRecord], figure_name: str) -> dict[str, float]:
    """Hash of a run -> its cost; empty unless every run that is drawn has one.

    `pareto`: s per 1000 images of its training step, timed with the machine to itself: times under load contradict
    one another. `compute`: 10^12 FLOPs of all that was trained.
    """
    of_run: dict[str, float] = {}
    for entry in entries:
        if figure_name == "compute":
            if of_seed := total_tflops([entry]):
                of_run[entry.record.run_hash] = of_seed[entry.record.seed]
        elif entry.record.protocol == "speed":
            rate = entry.measures["images_per_s"].value
            of_run[entry.record.run_hash] = 1000 / rate
    drawn_runs = {
        entry.record.run_hash
        for entry in entries
        if entry.record.protocol in panel_titles() and entry.record.pretrain is not None
    }
    return of_run if of_run.keys() >= drawn_runs else {}


def pareto(benchmark: Benchmark, entries: Sequence[CellRecord], figure_name: str) -> Figure | None:
    """One point a row, in its target's colour; grey steps along the best mean at each cost (`costs`) or less."""
    data: dict[str, dict[str, list[tuple[float, float]]]] = {key: {} for key in panel_titles()}
    baselines: dict[str, dict[str, list[float]]] = {}
    targets = {entry.cell.label: entry.record.target for entry in entries}
    numbers = look_numbers({target: target for target in targets.values()})
    costs_of_run = costs(entries, figure_name)
    for entry in entries:
        cost = costs_of_run.get(entry.record.run_hash)
        for key, measure in entry.measures.items():
            if (spec := PROTOCOLS.get(key)) and spec.column:
                of_name = baselines.setdefault(spec.column, {})
                of_name.setdefault(f"from {spec.title}", []).append(100 * measure.value)
            elif key in data and cost is not None:
                pairs = data[key].setdefault(entry.cell.label, [])
                pairs.append((cost, 100 * measure.value))
    data = {key: of_rows for key, of_rows in data.items() if of_rows}
    if not data:
        return None
    names = [panel_titles()[key] for key in data]
    cost_name = "compute" if figure_name == "compute" else "cost"
    figure, panels = figure_of(f"{benchmark.title}: accuracy and {cost_name}", entries, names)
    all_values, crowded, has_bars = [], False, False
    for panel, (key, of_rows) in zip(panels, data.items(), strict=True):
        panel.labels_at_points = True
        width = np.ptp([cost for pairs in of_rows.values() for cost, _ in pairs])
        for label, pairs in of_rows.items():
            x, values = zip(*pairs, strict=True)
            curve = Curve(label, (float(np.mean(x)),), (values,), numbers[targets[label]])
            panel.add(curve)
            if np.ptp(x) > _SEEN * width:
                panel.axes.hlines(curve.mean, min(x), max(x), color=curve.color, linewidth=1)
                has_bars = True
            all_values.append(values)
        _add_front(panel)
        if crowded := len(of_rows) > len(numbers):
            best: dict[str, Label] = {}
            for label in sorted(panel.labels, key=lambda label: label.y):
                best[targets[label.text]] = label
            panel.labels = list(best.values())
        levels = {
            name: float(np.mean(accuracies)) for name, accuracies in baselines.get(key, {}).items()
        }
        for level_index, name in enumerate(sorted(levels, key=lambda name: -levels[name])):
            panel.add_level(name, levels[name], is_below=level_index % 2 == 1)
        panel.axes.set(xlabel=_COSTS[figure_name], ylabel=ACCURACY)
    note = seeds_behind(all_values)
    note += " Bars across: least to greatest." if has_bars else ""
    note += " Steps: best mean at that cost or less."
    note += " Named: the best row of each target." if crowded else ""
    note += gates.remark(entries)
    return close(figure, panels, note, entries)


def _add_front(panel: Panel) -> None:
    ends = sorted((label.x, label.y) for label in panel.labels)
    cost, accuracy = zip(*ends, strict=True)
    best = np.maximum.accumulate(accuracy)
    look: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "alpha": 0.5, "zorder": 0}
    panel.axes.hlines(best[:-1], cost[:-1], cost[1:], **look)
    panel.axes.vlines(cost[1:], best[:-1], best[1:], **look)


# ---- learning curves ----


def learning(benchmark: Benchmark, entries: Sequence[CellRecord]) -> Figure | None:
    """Loss of pre-training over that of the mean of each position, so that targets read together (over its first
    epoch's where a record has no gate); accuracy of fine-tuning on held-out images.
    """
    kept, fixed = _one_a_target(entries)
    has_gate = all(
        "mean_loss" in entry.record.pretrain.gate
        for entry in kept
        if entry.record.pretrain is not None
    )
    losses, accuracies = _by_epoch(kept, fixed, has_gate)
    of_what = "the mean of each position" if has_gate else "the first epoch"
    data = [
        ("pre-training", f"loss / loss of {of_what}", losses),
        ("fine-tuning", "accuracy on held-out training images (%)", accuracies),
    ]
    data = [entry for entry in data if entry[-1]]
    if not data:
        return None
    targets = {_label(entry, fixed): entry.record.target for entry in kept}
    title = f"{benchmark.title}: learning curves"
    figure, panels = figure_of(title, entries, [name for name, _, _ in data])
    cut = ""
    for panel, (_, y, points) in zip(panels, data, strict=True):
        for curve in as_curves(points, targets):
            is_scratch = curve.label not in targets
            grey = {"color": GREY, "line": "--"} if is_scratch else {}
            panel.add(curve, band=True, **grey)
        panel.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.axes.set(xlabel="epoch", ylabel=y)
        if points is losses and has_gate:  # the first epoch may be far above the mean's
            top = panel.axes.get_ylim()[1]
            panel.axes.set_ylim(0, min(top, _HIGHEST))
            cut = f" Losses above {_HIGHEST:g} are cut off." if top > _HIGHEST else ""
    drawn_points = [at for points in (losses, accuracies) for at in points.values()]
    count = span(len(values) for at in drawn_points for values in at.values())
    note = "One seed." if count == "1" else f"Mean of {count} seeds; band: least to greatest."
    at = row_label({field: kept[0].cell.point[field] for field in fixed})
    note += cut + (f" At {at}." if at else "") + gates.remark(entries)
    return close(figure, panels, note, kept)


def _by_epoch(
    entries: Sequence[CellRecord], fixed: Sequence[str], has_gate: bool
) -> tuple[Points, Points]:
    """Relative losses of each run, and accuracies of fine-tuning in per cent."""
    losses: Points = {}
    accuracies: Points = {}
    runs = set()
    for entry in entries:
        record, facts = entry.record, entry.record.pretrain
        label = _label(entry, fixed)
        if facts is not None and facts.epoch_losses and record.run_id not in runs:
            runs.add(record.run_id)
            unit = facts.gate["mean_loss"] if has_gate else facts.epoch_losses[0][1]
            for epoch, loss in facts.epoch_losses:
                losses.setdefault(label, {}).setdefault(epoch, []).append(loss / unit)
        if PROTOCOLS[record.protocol].column == "finetune" or record.protocol == "finetune":
            label = label if record.protocol == "finetune" else PROTOCOLS[record.protocol].title
            for epoch, accuracy in enumerate(record.curves.get("model", ()), start=1):
                accuracies.setdefault(label, {}).setdefault(epoch, []).append(100 * accuracy)
    return losses, accuracies


def _label(entry: CellRecord, fixed: Sequence[str]) -> str:
    return row_label({k: v for k, v in entry.cell.point.items() if k not in fixed})


def _one_a_target(entries: Sequence[CellRecord]) -> tuple[list[CellRecord], list[str]]:
    """The rows nearest to the preset's own values, and the fields that are fixed by it."""
    kept, first = list(entries), entries[0].cell
    if len({entry.cell.label for entry in entries}) <= _MANY:
        return kept, []
    defaults = flatten(resolve(first.config.target.name, first.config.preset).config.model_dump())
    fixed = [field for field in first.point if field != "target"]
    for field in fixed:
        values = list(dict.fromkeys(entry.cell.point[field] for entry in kept))
        level = defaults.get(config_field(field, first.config))
        if isinstance(level, (int, float)):
            level = min(values, key=lambda value: abs(value - level))
        level = level if level in values else values[0]
        kept = [entry for entry in kept if entry.cell.point[field] == level]
    return kept, fixed
