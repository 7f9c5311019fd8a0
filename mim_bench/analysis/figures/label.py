"""Labels of curves in a panel: next to their points or in a column at the right, none over another or a marker."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.text import Text
from scipy import optimize

from mim_bench.analysis.figures.color import Line, legible

_GAP = 9.0
"""Points between a curve's end and its label."""
_LINE = 1.25
"""Distance of two labels, in font sizes."""
_COVERED, _OUTSIDE, _CROSSED, _NEAR = 20.0, 99.0, 8.0, 4.0
"""Cost of covering a marker or another text, of leaving the panel, of a thin line through a text, and of standing
next to another's marker or of a thin line through it; a bar costs 1."""
_STEPS = tuple(
    sorted((0.0, *(side * (0.7 + 1.1 * n) for n in range(7) for side in (1, -1))), key=abs)
)
"""Above or below a point where its label may stand, in heights of a label."""
_COLUMNS = (0.5, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0)
"""Right of a point, in heights of a label; left of it the first two."""
_MOVED = 0.4
"""Cost of a label's distance to its point, a height of a label."""
_NEXT_TO = 0.4
"""Distance to another's marker, in heights of a label, within which the label seems to be that one's."""
_FAR = 1.0
"""A label further above, below or aside, in its heights, has a thin line to its point."""
_STARTS, _ROUNDS = 20, 6
"""Number of starts, and of rounds in which every label looks for a better place among the others."""


@dataclass(frozen=True)
class Label:
    """Text at a point, in data units of its axes."""

    axes: Axes
    x: float
    y: float
    text: str
    color: str
    """Of its curve; the text is as dark as it has to be."""
    line: Line = "-"
    """Style of its curve, taken up by the thin line to the text."""


def place_labels(labels: Sequence[Label], axes: Axes, *, at_points: bool, point: float) -> None:
    """Labels at their points or right of everything, none over another, thin lines to those moved.

    Args:
        labels: at points of these axes.
        axes: laid out.
        at_points: their points; else in a column at the right.
        point: pixels of one.
    """
    box = axes.bbox
    size = matplotlib.rcParams["font.size"] * point
    texts = [
        axes.annotate(
            label.text, (label.x, label.y), (0, 0), xycoords=label.axes.transData, textcoords="axes fraction",
            color=legible(label.color), va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.5 if at_points else 0.8,
                        "linestyle": "-" if at_points else label.line, "shrinkA": 0, "shrinkB": 2.5,
                        "relpos": (0, 0.5)},
        )
        for label in labels
    ]  # fmt: skip
    # an annotation's own extent would have the line to its point in it
    widths = np.array([Text.get_window_extent(text).width for text in texts])
    right = _ends(labels)[:, 0] - box.x0 if at_points else np.full(len(labels), box.width)
    share = float(np.min((box.width - widths - 1.6 * _GAP * point) / np.maximum(right, 1)))
    low, high = axes.get_xlim()
    axes.set_xticks([x for x in axes.get_xticks() if low <= x <= high])  # none under the labels
    _make_room(axes, min(1.0, share))
    ends = _ends(labels) - (box.x0, box.y0)
    if at_points:
        names = [label.text for label in labels]
        boxes, has_line = _at_points(axes, names, ends, widths, 1.1 * size)
        positions = [(left, (low + high) / 2) for left, low, _, high in boxes]
    else:
        y = spread(ends[:, 1], _LINE * size, size / 2, box.height - size / 2)
        positions = [(share * box.width + _GAP * point, height) for height in y]
        has_line = np.full(len(labels), True)
    for text, (x, y), end, is_shown in zip(texts, positions, ends, has_line, strict=True):
        text.set_position((x / box.width, y / box.height))
        assert text.arrow_patch is not None and text.arrowprops is not None
        text.arrowprops["relpos"] = (float(x < end[0]), 0.5)
        text.arrow_patch.set_visible(bool(is_shown))


def _at_points(
    axes: Axes, names: Sequence[str], ends: np.ndarray, widths: np.ndarray, height: float
) -> tuple[np.ndarray, np.ndarray]:
    """(labels, 4) boxes of labels next to their points, each where it costs the least; whether each has a line."""
    owners, markers, bars = _obstacles(axes, height)
    room = np.array([[0, 0, axes.bbox.width, axes.bbox.height]])
    places = np.array(
        [_places(end, width, height) for end, width in zip(ends, widths, strict=True)]
    )
    lines, costs = np.full(places.shape, np.nan), np.empty(places.shape[:2])
    for number, (name, end, boxes) in enumerate(zip(names, ends, places, strict=True)):
        foreign = markers[owners != name]
        off = _gaps(boxes, np.array([[*end, *end]]))[:, 0] / height
        near = (_gaps(boxes, foreign) < _NEXT_TO * height).sum(1)
        has_line = (off > _FAR) | (near > 0)
        lines[number, has_line] = _lines(boxes[has_line], end)
        is_outside = (boxes[:, :2] < room[:, :2]).any(1) | (boxes[:, 2:] > room[:, 2:]).any(1)
        near = near + _crosses(lines[number], foreign).sum(1)
        covered = (_gaps(boxes, markers) <= 0).sum(1)
        costs[number] = _MOVED * off + _NEAR * near + _OUTSIDE * is_outside + _COVERED * covered
        costs[number] += (_gaps(boxes, bars) <= 0).sum(1)
    chosen = np.arange(len(places)), _cheapest(costs, _pair_costs(places, lines))
    return places[chosen], np.isfinite(lines[chosen][:, 0])


def _pair_costs(places: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """(L, P, L, P) cost of two labels at two places: each over the other, or under its thin line."""
    num_labels, num_places, _ = places.shape
    flat_places, flat_lines = places.reshape(-1, 4), lines.reshape(-1, 4)
    costs = np.empty((num_labels, num_places, num_labels, num_places), np.float32)
    for number, (boxes, own_lines) in enumerate(zip(places, lines, strict=True)):
        covered = _gaps(boxes, flat_places) <= 0
        crossed = _crosses(own_lines, flat_places) + 0.0 + _crosses(flat_lines, boxes).T
        cost = _COVERED * covered + _CROSSED * crossed
        costs[number] = cost.reshape(num_places, num_labels, num_places)
        costs[number, :, number] = 0
    return costs


def _cheapest(costs: np.ndarray, pair_costs: np.ndarray) -> np.ndarray:
    """(L,) place of each label: from several starts each label in turn takes its best place among the others."""
    labels, rng = np.arange(len(costs)), np.random.default_rng(0)
    results = []
    for _ in range(_STARTS):
        chosen = costs.argmin(1)
        for _ in range(_ROUNDS):
            for number in rng.permutation(labels):
                crowding = pair_costs[number][:, labels, chosen].sum(1)
                chosen[number] = np.argmin(costs[number] + crowding)
        crowding = pair_costs[labels, chosen][:, labels, chosen].sum()
        results.append((costs[labels, chosen].sum() + crowding / 2, chosen))
    return min(results, key=lambda result: result[0])[1]


def _places(end: np.ndarray, width: float, height: float) -> np.ndarray:
    """(P, 4) boxes where the label of a point may stand, the nearest first."""
    x, y = end
    lefts = [x + column * height for column in _COLUMNS]
    lefts += [x - column * height - width for column in _COLUMNS[:2]]
    lows = [y + step * height - height / 2 for step in _STEPS]
    return np.array([(left, low, left + width, low + height) for low in lows for left in lefts])


def _lines(places: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(P, 4) thin lines from the near side of a box to the point."""
    left, low, right, high = places.T
    x, y = np.broadcast_to(end, (len(places), 2)).T
    return np.stack([np.where(left < x, right, left), (low + high) / 2, x, y], axis=1)


def _obstacles(axes: Axes, height: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(M,) curves and (M, 4) boxes of all markers, (B, 4) of bars, in pixels of the panel."""
    corner, radius = (axes.bbox.x0, axes.bbox.y0), height / 3
    owners, markers, bars = [], [], []
    for line in axes.lines:
        if line.get_marker() not in ("", "None", None):
            pixels = line.get_transform().transform(line.get_xydata()) - corner
            owners += [str(line.get_label()).removesuffix(" seeds")] * len(pixels)
            markers += [(x - radius, y - radius, x + radius, y + radius) for x, y in pixels]
    for collection in axes.collections:
        if isinstance(collection, LineCollection):
            for segment in collection.get_segments():
                pixels = collection.get_transform().transform(segment) - corner
                bars.append((*(pixels.min(0) - 1), *(pixels.max(0) + 1)))
    return np.array(owners), np.array(markers).reshape(-1, 4), np.array(bars).reshape(-1, 4)


def _gaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(A, B) distances of boxes (A, 4) and (B, 4) along the axis where they are further apart; below 0 they overlap."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    return np.maximum(others[None, :, :2] - high, low - others[None, :, 2:]).max(-1)


def _crosses(lines: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(A, B) whether lines (A, 4) go through boxes (B, 4); none where a line is nan."""
    start, end = lines[:, None, :2], lines[:, None, 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = (
            (boxes[None, :, :2] - start) / (end - start),
            (boxes[None, :, 2:] - start) / (end - start),
        )
    enters, leaves = np.minimum(*ends).max(-1), np.maximum(*ends).min(-1)
    return np.maximum(enters, 0) < np.minimum(leaves, 1)


def _ends(labels: Sequence[Label]) -> np.ndarray:
    """(number of labels, 2) pixels of their points."""
    return np.array([label.axes.transData.transform((label.x, label.y)) for label in labels])


def _make_room(axes: Axes, share: float) -> None:
    """Moves the right end of the x axis so that what it showed takes `share` of the width."""
    transform = axes.xaxis.get_transform()
    low, high = transform.transform(np.array(axes.get_xlim()))
    end = transform.inverted().transform(np.array([low + (high - low) / share]))
    axes.set_xlim(right=float(end[0]))


def spread(desired: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """The nearest positions (least squares) in the same order that keep `gap`, moved into [low, high]."""
    order = np.argsort(desired, kind="stable")
    num = len(desired)
    gap = min(gap, (high - low) / max(1, num - 1))
    steps = gap * np.arange(num)
    level = optimize.isotonic_regression(desired[order] - steps).x
    placed = np.empty(num)
    placed[order] = np.clip(level, low, high - gap * (num - 1)) + steps
    return placed
