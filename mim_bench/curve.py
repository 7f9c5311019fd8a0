"""What the figures of `mim_bench.figure` are put together from: a panel with curves over seeds, each labelled
at its end, beside a published one in grey with a scale of its own; and the files of a figure.

Legend: P points of a curve.
"""

import os
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
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import NullLocator
from matplotlib.transforms import Bbox, ScaledTranslation, Transform
from scipy import optimize

from mim_bench.error import UserError
from mim_bench.table import half_interval

STYLE = Path(__file__).with_name("figure.mplstyle")
GREY = "#6e6e6e"
"""Of what was not measured here or not pre-trained; legible as text on white."""
_MARKERS = "osD^vPX"
_NUM_COLORS = 7
_GAP = 9.0
"""Points between a curve's end and its label."""
_DODGE = 2.5
"""Points between curves at the same x."""
_LINE = 1.25
"""Distance of two labels, in font sizes."""
_OUTSIDE = 9
"""Outside the panel is as bad as over so many other things."""
_METADATA: dict[str, dict[str, Any]] = {
    "png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None},
}  # fmt: skip
"""Suffix -> what is left out, so that a redraw gives the same bytes."""


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
    """Of its colour and marker."""

    @property
    def mean(self) -> np.ndarray:
        """(P,)."""
        return np.array([np.mean(values) for values in self.values])

    @property
    def color(self) -> str:
        return f"C{self.number % _NUM_COLORS}"

    @property
    def marker(self) -> str:
        return _MARKERS[self.number % len(_MARKERS)]


@dataclass(frozen=True)
class Label:
    """Text at a point, in data units of its axes."""

    axes: Axes
    x: float
    y: float
    text: str
    color: str


@dataclass
class Panel:
    """Axes, and the labels that find their place once everything else has."""

    axes: Axes
    labels: list[Label] = field(default_factory=list)
    beside: bool = False
    """Labels stand beside their points; else in a column at the right."""
    published: Axes | None = None
    _drawn: list[list[Artist]] = field(default_factory=list)

    def add(self, curve: Curve, *, band: bool = False, color: str = "", line: str = "-") -> None:
        """Mean over seeds with bars of 95 %, or with a band from the least to the greatest."""
        color, mean = color or curve.color, curve.mean
        marker = "" if band or line != "-" else curve.marker
        drawn: list[Artist] = [
            *self.axes.plot(curve.x, mean, line, marker=marker, color=color, label=curve.label)
        ]
        if band:
            low, high = ([end(values) for values in curve.values] for end in (min, max))
            self.axes.fill_between(curve.x, low, high, color=color, alpha=0.2, linewidth=0)
        else:
            self._drawn.append(drawn + self._bars(curve, color))
        self.labels.append(Label(self.axes, curve.x[-1], mean[-1], curve.label, color))

    def _bars(self, curve: Curve, color: str) -> list[Artist]:
        """Of the points with several seeds."""
        ends = [
            (x, mean - half, mean + half)
            for x, mean, values in zip(curve.x, curve.mean, curve.values, strict=True)
            if (half := half_interval(values)) is not None
        ]
        if not ends:
            return []
        x, low, high = zip(*ends, strict=True)
        label = f"{curve.label} 95 %"
        return [self.axes.vlines(x, low, high, color=color, linewidth=1, label=label)]

    def dodge(self) -> None:
        """Draws each curve a little beside the others, so that no bar hides another; x stays in the data."""
        for number, drawn in enumerate(self._drawn):
            points = _DODGE * (number - (len(self._drawn) - 1) / 2)
            for artist in drawn:
                artist.set_transform(_shifted(self.axes, points))

    def add_control(self, curve: Curve) -> None:
        """A thin dashed line in grey, without interval."""
        mean = curve.mean
        self.axes.plot(curve.x, mean, "--", color=GREY, linewidth=0.9, label=curve.label)
        self.labels.append(Label(self.axes, curve.x[-1], mean[-1], curve.label, GREY))

    def add_level(self, name: str, y: float) -> None:
        """The same at one height for every x, named at its left."""
        self.axes.axhline(y, color=GREY, linestyle="--", linewidth=0.9, label=name)
        where: Any = ("axes fraction", "data")
        self.axes.annotate(
            name, (0, y), (4, 3), xycoords=where, textcoords="offset points", color=GREY
        )

    def add_published(
        self, curve: Curve, is_open: Sequence[bool], *, scale: str, own_x: str = ""
    ) -> None:
        """In grey, on a scale of its own at the right; open markers where `is_open`.

        Args:
            curve: published, one value a point.
            is_open: (P,).
            scale: label of the scale.
            own_x: label of an x axis of its own at the top; by default it shares the panel's.
        """
        if self.published is None:
            right = self.published = self.axes.twinx()
            _in_grey(right, "right")
            right.set_ylabel(scale, color=GREY)
            if own_x:
                self.published = right.twiny()
                _in_grey(self.published, "top")
                self.published.set_xlabel(own_x, color=GREY)
                self.published.set_xticks(curve.x, [f"{x:g}" for x in curve.x])
            self.axes.set_zorder(self.published.get_zorder() + 1)
            self.axes.patch.set_visible(False)
        axes, y, is_hollow = self.published, curve.mean, np.array(is_open)
        style: dict[str, Any] = {"color": GREY, "marker": curve.marker, "linewidth": 0}
        axes.plot(curve.x, y, color=GREY, linewidth=0.9, alpha=0.6, label=curve.label)
        for hollow, face in ((False, GREY), (True, "white")):
            x = np.array(curve.x)[is_hollow == hollow]
            axes.plot(x, y[is_hollow == hollow], **style, markersize=3.5, markerfacecolor=face)
        self.labels.append(Label(axes, curve.x[-1], y[-1], curve.label, GREY))

    @property
    def along(self) -> list[Axes]:
        """One of the axes for each x axis that is not shared."""
        shared = self.axes.get_shared_x_axes()
        own = self.published and not shared.joined(self.axes, self.published)
        return [self.axes, self.published] if own and self.published else [self.axes]

    def ticks(self, values: Sequence[float], names: Sequence[str]) -> None:
        """Ticks at what was measured."""
        self.axes.set_xticks(values, names)
        self.axes.xaxis.set_minor_locator(NullLocator())


def _shifted(axes: Axes, points: float) -> Transform:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def _in_grey(axes: Axes, side: str) -> None:
    axes.tick_params(
        axis="y" if side == "right" else "x", which="both", color=GREY, labelcolor=GREY
    )
    axes.spines[:].set_visible(False)
    axes.spines[side].set(visible=True, color=GREY)


# ---- labels ----


def finish(figure: Figure, panels: Sequence[Panel]) -> None:
    """Lays the figure out, then makes room for the labels and places them."""
    FigureCanvasAgg(figure)
    for _ in range(2):  # ticks follow the size, the size follows their names
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for panel in panels:
        _place(panel, figure.dpi / 72)
        if not panel.beside:
            panel.dodge()
    figure.draw_without_rendering()
    for axes in (axes for panel in panels for axes in panel.along):
        _thin_ticks(axes)


def _place(panel: Panel, point: float) -> None:
    """Labels at their points or right of everything, none over another, thin lines to those moved.

    Args:
        panel: laid out.
        point: pixels of one.
    """
    axes, labels, box = panel.axes, panel.labels, panel.axes.bbox
    size = matplotlib.rcParams["font.size"] * point
    texts = [
        axes.annotate(
            label.text, (label.x, label.y), (0, 0), xycoords=label.axes.transData,
            textcoords="axes fraction", color=label.color, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.5, "alpha": 0.6,
                        "shrinkA": 0, "shrinkB": 2.5, "relpos": (0, 0.5)},
        )
        for label in labels
    ]  # fmt: skip
    # an annotation's own extent would have the line to its point in it
    widths = np.array([Text.get_window_extent(text).width for text in texts])
    right = _ends(labels)[:, 0] - box.x0 if panel.beside else np.full(len(labels), box.width)
    share = float(np.min((box.width - widths - _GAP * point) / np.maximum(right, 1)))
    for one in panel.along:
        low, high = one.get_xlim()
        one.set_xticks([x for x in one.get_xticks() if low <= x <= high])  # none under the labels
        _make_room(one, min(1.0, share))
    ends = _ends(labels) - (box.x0, box.y0)
    if panel.beside:
        at = _beside(panel, ends, widths, 1.1 * size)
    else:
        y = apart(ends[:, 1], _LINE * size, size / 2, box.height - size / 2)
        at = [(share * box.width + _GAP * point, height) for height in y]
    for text, (x, y) in zip(texts, at, strict=True):
        text.set_position((x / box.width, y / box.height))
        assert text.arrow_patch is not None
        text.arrow_patch.set_visible(not panel.beside)


def _beside(
    panel: Panel, ends: np.ndarray, widths: np.ndarray, height: float
) -> list[tuple[float, float]]:
    """For each label that corner of its point, upper right first, where it lies over the least."""
    box = panel.axes.bbox
    taken = [Bbox.from_extents(*(end - height / 4), *(end + height / 4)) for end in ends]
    for bars in panel.axes.collections:
        if isinstance(bars, LineCollection):
            pixels = [bars.get_transform().transform(ends) for ends in bars.get_segments()]
            taken += [Bbox(ends - (box.x0, box.y0)).padded(1) for ends in pixels]
    placed = []
    for (x, y), width in zip(ends, widths, strict=True):
        right, left, step = x + height / 2, x - height / 2 - width, 0.7 * height
        corners = [(right, y + step), (right, y - step), (left, y + step), (left, y - step)]
        boxes = [Bbox.from_bounds(u, v - height / 2, width, height) for u, v in corners]
        over = [
            one.count_overlaps(taken) + _OUTSIDE * (one.x0 < 0 or one.y0 < 0 or one.y1 > box.height)
            for one in boxes
        ]
        best = int(np.argmin(over))
        taken.append(boxes[best])
        placed.append(corners[best])
    return placed


def _ends(labels: Sequence[Label]) -> np.ndarray:
    """(number of labels, 2) pixels of their points."""
    return np.array([label.axes.transData.transform((label.x, label.y)) for label in labels])


def _make_room(axes: Axes, share: float) -> None:
    """Moves the right end of the x axis so that what it showed takes `share` of the width."""
    transform = axes.xaxis.get_transform()
    low, high = transform.transform(np.array(axes.get_xlim()))
    end = transform.inverted().transform(np.array([low + (high - low) / share]))
    axes.set_xlim(right=float(end[0]))


def apart(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """The nearest positions (least squares) in the same order that keep `gap`, moved into [low, high]."""
    order = np.argsort(wanted, kind="stable")
    num = len(wanted)
    gap = min(gap, (high - low) / max(1, num - 1))
    steps = gap * np.arange(num)
    level = optimize.isotonic_regression(wanted[order] - steps).x
    placed = np.empty(num)
    placed[order] = np.clip(level, low, high - gap * (num - 1)) + steps
    return placed


def _thin_ticks(axes: Axes) -> None:
    """Leaves out names of x ticks that would touch the one before."""
    names, end = [], -np.inf
    for text in axes.get_xticklabels():
        box = text.get_window_extent()
        fits = box.x0 > end + 0.3 * box.height
        names.append(text.get_text() if fits else "")
        end = box.x1 if fits else end
    axes.set_xticks(axes.get_xticks(), names)


# ---- files ----


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes `stem.png`, `.svg` and `.pdf`, each under a temporary name, then replaced.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    paths = []
    for suffix, metadata in _METADATA.items():
        path = stem.with_name(f"{stem.name}.{suffix}")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(temporary, format=suffix, metadata=metadata)
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error}") from None
        finally:
            if path.parent.is_dir():
                temporary.unlink(missing_ok=True)
        paths.append(path)
    return paths
