"""Layout shared by the figures of a benchmark: a figure with a panel a measure, and the note under it."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mim_bench.analysis.figures.color import look_numbers
from mim_bench.analysis.figures.panel import GREY, Curve, Panel, finish
from mim_bench.analysis.row import span
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.records.store import CellRecord

ACCURACY = "top-1 accuracy (%)"
_HEIGHT, _WIDTH, _WIDTH_OF_PANEL = 3.4, 2.0, 2.6
"""Inches; the second for labels and margins."""
_CHARACTERS, _TITLE_CHARACTERS = 17.2, 11.5
"""An inch of a line."""

Points = dict[str, dict[float, list[float]]]
"""Curve -> x -> one value a seed."""


def panel_titles() -> dict[str, str]:
    """Protocol -> title of its panel, from left to right, as the specs say."""
    return {spec.name: spec.panel for spec in PROTOCOLS.values() if spec.panel}


def figure_of(
    title: str, entries: Sequence[CellRecord], names: Sequence[str]
) -> tuple[Figure, list[Panel]]:
    """A figure of a benchmark's records with a panel a name."""
    return panels_of(title, entries[0].record.preset, names)


def panels_of(title: str, preset: str, names: Sequence[str]) -> tuple[Figure, list[Panel]]:
    """A figure with a panel a name."""
    width = _WIDTH + _WIDTH_OF_PANEL * len(names)
    figure = Figure(figsize=(width, _HEIGHT), layout="constrained")
    title = f"{title}, preset {Path(preset).stem}"
    figure.suptitle(textwrap.fill(title, int(width * _TITLE_CHARACTERS)), x=0.01, ha="left")
    panels = [Panel(axes) for axes in figure.subplots(1, len(names), squeeze=False)[0]]
    for panel, name in zip(panels, names, strict=True):
        panel.axes.set_title(name)
    return figure, panels


def close(
    figure: Figure, panels: Sequence[Panel], note: str, entries: Sequence[CellRecord]
) -> Figure:
    """Puts the note under the figure, and every label in its place."""
    older = sorted({reason for entry in entries for reason in entry.stale})
    note += f" Some records are stale ({', '.join(older)})." if older else ""
    text = textwrap.fill(note, int(figure.get_figwidth() * _CHARACTERS))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color=GREY)
    figure.set_figheight(_HEIGHT + 0.13 * text.count("\n"))
    finish(figure, panels)
    return figure


def seeds_behind(values: Iterable[Sequence[float]]) -> str:
    """Sentence on the number of seeds behind the points and on the meaning of the bars."""
    count = span(len(of_point) for of_point in values)
    if count == "1":
        return "One seed, so no interval."
    if count in ("2", "1 to 2"):
        return f"Mean of {count} seeds, and small each of them: too few for an interval."
    return f"Mean of {count} seeds; bars: 95 % interval (Student's t), of three or more."


def as_curves(points: Points, targets: Mapping[str, str]) -> list[Curve]:
    """Curves of points, x ascending, in the looks of their targets (label -> target, of all panels)."""
    numbers = look_numbers(targets)
    return [
        Curve(
            label,
            tuple(sorted(of_x)),
            tuple(tuple(of_x[x]) for x in sorted(of_x)),
            numbers.get(label, 0),
        )
        for label, of_x in points.items()
    ]
