"""Figure of predictability against usefulness of targets: one point a target.

Predictable: share of the mean's loss that ridge regression from visible pixels removes, before any training. Useful:
at the left the accuracy of the target itself as a fixed feature, at the right that of encoders trained on it, where a
table of targets has records at the preset. Drawn from what `diagnose` writes, with the records that there are.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from mim_bench.analysis import gates
from mim_bench.analysis.figures.color import look_numbers
from mim_bench.analysis.figures.layout import ACCURACY, close, panels_of, seeds_behind
from mim_bench.analysis.figures.panel import Curve, save, style
from mim_bench.config.run import digest
from mim_bench.records import store
from mim_bench.records.measure import measures

TABLES = ("targets", "all_targets")
"""Benchmarks whose rows are targets and nothing else."""
Accuracies = Mapping[str, Mapping[str, float]]
"""Target -> run -> accuracy of its encoder."""


def draw_diagnoses(path: Path, preset: str, results: Path) -> list[Path]:
    """`<preset>.png`, `.svg` and `.pdf` next to the CSV file that `diagnose` wrote."""
    table, trained = pd.read_csv(path), trained_accuracies(preset, results)
    with style():
        return save(compose(table, trained, preset), path.with_suffix(""), _stamp(table, trained))


def stamp(path: Path, preset: str, results: Path) -> str:
    """Digest of what the figure of a CSV file is drawn from, the records of encoders too."""
    return _stamp(pd.read_csv(path), trained_accuracies(preset, results))


def _stamp(table: pd.DataFrame, trained: Accuracies) -> str:
    return digest([table.to_json(), trained])


def trained_accuracies(preset: str, results: Path) -> dict[str, dict[str, float]]:
    """Accuracy on the preset's primary measure of every run of a table of targets."""
    measure = gates.primary_measure(preset) or "linear"
    accuracies: dict[str, dict[str, float]] = {}
    for name in TABLES:
        for _, record in store.read_folder(store.home(name, preset, results) / "records"):
            if record.protocol == measure:
                value = measures(record)[measure].value
                accuracies.setdefault(record.target, {})[record.run_id] = value
    return accuracies


def compose(table: pd.DataFrame, trained: Accuracies, preset: str) -> Figure:
    """Inside `panel.style()`."""
    table = table.dropna(subset=["ridge_r2", "linear"])
    rows = zip(table["target"], table["ridge_r2"], table["linear"], strict=True)
    numbers = look_numbers({name: name for name in table["target"]})
    targets = [name for name in table["target"] if name in trained]
    names = ["the target itself as a feature", *["encoders trained on it"] * bool(targets)]
    figure, panels = panels_of("How predictable, how useful", preset, names)
    all_values = []
    for panel in panels:
        panel.labels_at_points = True
        panel.axes.set(xlabel="R² of ridge from visible pixels", ylabel=ACCURACY)
    for name, x, accuracy in rows:
        points: list[tuple[float, ...]] = [(100 * accuracy,)]
        if name in trained:
            points.append(tuple(100 * value for value in trained[name].values()))
            all_values.append(points[-1])
        for panel, values in zip(panels, points, strict=False):
            panel.add(Curve(name, (x,), (values,), numbers[name]))
    note = "Logistic regression; at the left on the few thousand images of the diagnosis, less than in tables. "
    note += seeds_behind(all_values) if all_values else ""
    note += " R² over the loss of the mean of each position, on views that training does not see."
    return close(figure, panels, note, [])
