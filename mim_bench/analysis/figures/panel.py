"""Parts of a figure: a panel with curves over seeds, each labelled at its end (see `label`),
or with a published one in grey; the layout and the files of a figure.

Legend: P points of a curve.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation, Transform

from mim_bench.analysis.figures import color as colors
from mim_bench.analysis.figures.label import Label, place_labels
from mim_bench.analysis.table import half_interval
from mim_bench.files import replacing
from mim_bench.records import png_stamp

STYLE = Path(__file__).with_name("figure.mplstyle")
GREY = "#6e6e6e"
"""Grey of curves not measured here or not pre-trained; legible as text on white."""
_DODGE = 2.5
"""Points between curves at the same x."""


def style() -> AbstractContextManager[None]:
    """The style file, whatever the user's own settings; to be entered to compose and to save."""
    return matplotlib.style.context(STYLE, after_reset=True)


@dataclass(frozen=True)
class Curve:
    """Values over seeds along a quantity."""

    label: str
    x: tuple[float, ...]
    """(P,), ascending."""
    values: tuple[tuple[float, ...], ...]
    """(P,) times the seeds of the point."""
    number: int = 0
    """Number of its look; see `color.look_numbers`."""

    @property
    def mean(self) -> np.ndarray:
        """(P,)."""
        return np.array([np.mean(values) for values in self.values])

    @property
    def color(self) -> str:
        return f"C{self.number % colors.NUM_COLORS}"

    @property
    def marker(self) -> str:
        return colors.MARKERS[colors.marker_number(self.number)]

    @property
    def line(self) -> colors.Line:
        return colors.LINES[colors.line_number(self.number)]


@dataclass
class Panel:
    """Axes, and the labels that find their place once everything else has."""

    axes: Axes
    labels: list[Label] = field(default_factory=list)
    labels_at_points: bool = False
    """Labels are next to their points; else in a column at the right."""
    peaks: set[float] = field(default_factory=set)
    """x of the greatest mean of each curve."""
    _drawn: list[list[Artist]] = field(default_factory=list)

    def add(
        self, curve: Curve, *, band: bool = False, color: str = "", line: colors.Line = ""
    ) -> None:
        """Mean over seeds with bars of 95 %, or with a band from the least to the greatest.

        Of two seeds, whose interval would say nothing, the two points are drawn instead.
        """
        color, line, mean = color or curve.color, line or curve.line, curve.mean
        self.peaks.add(curve.x[int(np.argmax(mean))])
        marker = "" if band and len(curve.values) > 1 else curve.marker
        artists: list[Artist] = [
            *self.axes.plot(
                curve.x, mean, linestyle=line, marker=marker, color=color, label=curve.label
            )
        ]
        if band:
            low, high = ([end(values) for values in curve.values] for end in (min, max))
            self.axes.fill_between(curve.x, low, high, color=color, alpha=0.2, linewidth=0)
        else:
            self._drawn.append(artists + self._bars(curve, color))
        self.labels.append(Label(self.axes, curve.x[-1], mean[-1], curve.label, color, line))

    def _bars(self, curve: Curve, color: str) -> list[Artist]:
        """Error bars of the points with several seeds."""
        ends = [
            (x, mean - half, mean + half)
            for x, mean, values in zip(curve.x, curve.mean, curve.values, strict=True)
            if (half := half_interval(values)) is not None
        ]
        pairs = zip(curve.x, curve.values, strict=True)
        pairs = [(x, value) for x, values in pairs if len(values) == 2 for value in values]
        artists: list[Artist] = []
        if pairs:
            x, y = zip(*pairs, strict=True)
            artists += self.axes.plot(
                x,
                y,
                curve.marker,
                color=color,
                markersize=2.5,
                alpha=0.6,
                label=f"{curve.label} seeds",
            )
        if ends:
            x, low, high = zip(*ends, strict=True)
            label = f"{curve.label} 95 %"
            artists.append(self.axes.vlines(x, low, high, color=color, linewidth=1, label=label))
        return artists

    def dodge(self) -> None:
        """Draws each curve a little next to the others, so that no bar hides another; x stays in the data."""
        for number, artists in enumerate(self._drawn):
            points = _DODGE * (number - (len(self._drawn) - 1) / 2)
            for artist in artists:
                artist.set_transform(_shifted(self.axes, points))

    def add_level(self, name: str, y: float, *, is_below: bool = False) -> None:
        """The same at one height for every x, named at its left, above or below the line."""
        self.axes.axhline(y, color=GREY, linestyle="--", linewidth=0.9, label=name)
        coordinates: Any = ("axes fraction", "data")
        self.axes.annotate(
            name, (0, y), (4, -3 if is_below else 3), xycoords=coordinates, textcoords="offset points",
            va="top" if is_below else "bottom", color=GREY,
        )  # fmt: skip

    def add_published(self, curve: Curve, is_open: Sequence[bool]) -> None:
        """Adds a published curve in grey, with open markers where `is_open`, (P,)."""
        y, is_hollow = curve.mean, np.array(is_open)
        self.peaks.add(curve.x[int(np.argmax(y))])
        style: dict[str, Any] = {"color": GREY, "marker": curve.marker, "linewidth": 0}
        self.axes.plot(curve.x, y, color=GREY, linewidth=0.9, alpha=0.6, label=curve.label)
        for hollow, face in ((False, GREY), (True, "white")):
            x = np.array(curve.x)[is_hollow == hollow]
            self.axes.plot(x, y[is_hollow == hollow], **style, markersize=3.5, markerfacecolor=face)
        self.labels.append(Label(self.axes, curve.x[-1], y[-1], curve.label, GREY))

    def ticks(self, values: Sequence[float], names: Sequence[str]) -> None:
        """Ticks at what was measured."""
        self.axes.set_xticks(values, names)
        self.axes.xaxis.set_minor_locator(NullLocator())


def _shifted(axes: Axes, points: float) -> Transform:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


# ---- layout ----


def finish(figure: Figure, panels: Sequence[Panel]) -> None:
    """Lays the figure out, then makes room for the labels and places them."""
    FigureCanvasAgg(figure)
    for _ in range(2):  # ticks follow the size, the size follows their names
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for panel in panels:
        point = figure.dpi / 72
        place_labels(panel.labels, panel.axes, at_points=panel.labels_at_points, point=point)
        if not panel.labels_at_points:
            panel.dodge()
    figure.draw_without_rendering()
    for panel in panels:
        _thin_ticks(panel)


def _thin_ticks(panel: Panel) -> None:
    """Leaves out names of x ticks that would touch another, rather than those of the curves' peaks."""
    axes, kept = panel.axes, []
    ticks, texts = list(axes.get_xticks()), axes.get_xticklabels()
    names = [""] * len(ticks)
    for place in sorted(range(len(ticks)), key=lambda place: ticks[place] not in panel.peaks):
        box = texts[place].get_window_extent()
        if not box.padded(0.15 * box.height).count_overlaps(kept):
            names[place] = texts[place].get_text()
            kept.append(box)
    axes.set_xticks(ticks, names)


# ---- files ----


def save(figure: Figure, stem: Path, records: str) -> list[Path]:
    """Writes `stem.png`, `.svg` and `.pdf`, each under a temporary name, then replaced.

    Args:
        records: stamp of what it was drawn from (see `stamp`), kept in the PNG.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    # dates are left out, so that a redraw gives the same bytes
    of_format: dict[str, dict[str, Any]] = {
        "png": png_stamp.metadata(records), "svg": {"Date": None}, "pdf": {"CreationDate": None},
    }  # fmt: skip
    paths = []
    for suffix, metadata in of_format.items():
        path = stem.with_name(f"{stem.name}.{suffix}")
        with replacing(path) as temporary:
            figure.savefig(temporary, format=suffix, metadata=metadata)
        paths.append(path)
    return paths
