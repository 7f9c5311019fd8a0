"""Labels of curves in a panel: next to their points or in a column at the right, none over another."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from scipy import optimize

_GAP = 9.0
"""Points between a curve's end and its label."""
_LINE = 1.25
"""Distance of two labels, in font sizes."""
_LABEL, _OUTSIDE = 9, 99
"""Over another label, or outside the panel, is as bad as over so many lines and points."""
_STEPS = (0.7, -0.7, 0.0, 1.8, -1.8, 2.9, -2.9, 4.0, -4.0)
"""Above or below a point where its label may stand, in heights of a label; the nearest first."""
_COLUMNS, _ASIDE = (6.0, 12.0), 3
"""Further right of a point, in heights of a label; each column is as bad as over so many lines and points more."""
_FAR = 1.0
"""A label further above, below or aside has a thin line to its point."""
_ROUNDS = 4
"""Number of rounds in which every label looks for a better place among the others."""


@dataclass(frozen=True)
class Label:
    """Text at a point, in data units of its axes."""

    axes: Axes
    x: float
    y: float
    text: str
    color: str


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
            label.text, (label.x, label.y), (0, 0), xycoords=label.axes.transData,
            textcoords="axes fraction", color=label.color, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.5, "alpha": 0.6,
                        "shrinkA": 0, "shrinkB": 2.5, "relpos": (0, 0.5)},
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
        positions = _at_points(axes, ends, widths, 1.1 * size)
    else:
        y = spread(ends[:, 1], _LINE * size, size / 2, box.height - size / 2)
        positions = [(share * box.width + _GAP * point, height) for height in y]
    for text, (x, y), end in zip(texts, positions, ends, strict=True):
        text.set_position((x / box.width, y / box.height))
        assert text.arrow_patch is not None
        is_far = abs(y - end[1]) > _FAR * 1.1 * size or x - end[0] > _COLUMNS[0] * size
        text.arrow_patch.set_visible(not at_points or is_far)


def _at_points(
    axes: Axes, ends: np.ndarray, widths: np.ndarray, height: float
) -> list[tuple[float, float]]:
    """Positions of labels next to their points, upper right first, each where it covers the least."""
    box = axes.bbox
    obstacles = [Bbox.from_extents(*(end - height / 3), *(end + height / 3)) for end in ends]
    for bars in axes.collections:
        if isinstance(bars, LineCollection):
            pixels = [bars.get_transform().transform(ends) for ends in bars.get_segments()]
            obstacles += [Bbox(ends - (box.x0, box.y0)).padded(1) for ends in pixels]
    choices, base_costs = [], []
    for (x, y), width in zip(ends, widths, strict=True):
        left, right = x - height / 2 - width, x + height / 2
        places = [(side, step, 0) for step in _STEPS for side in (right, left)]
        for number, column in enumerate(_COLUMNS, start=1):
            places += [(right + column * height, step, number * _ASIDE) for step in _STEPS]
        boxes = [
            Bbox.from_bounds(side, y + step * height - height / 2, width, height)
            for side, step, _ in places
        ]
        costs = [_cost(choice, obstacles, box.width, box.height) for choice in boxes]
        choices.append(boxes)
        base_costs.append(np.add(costs, [aside for *_, aside in places]))
    chosen = [boxes[int(np.argmin(cost))] for boxes, cost in zip(choices, base_costs, strict=True)]
    for _ in range(_ROUNDS):
        for number, (boxes, cost) in enumerate(zip(choices, base_costs, strict=True)):
            others = chosen[:number] + chosen[number + 1 :]
            overlap_costs = [_LABEL * choice.count_overlaps(others) for choice in boxes]
            chosen[number] = boxes[int(np.argmin(np.add(cost, overlap_costs)))]
    return [(box.x0, box.y0 + height / 2) for box in chosen]


def _cost(box: Bbox, obstacles: Sequence[Bbox], width: float, height: float) -> int:
    """Cost of a label at a box, whatever the other labels do."""
    is_outside = box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height
    return box.count_overlaps(obstacles) + _OUTSIDE * is_outside


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
