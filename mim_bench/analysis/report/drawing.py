"""Small drawings of the page as SVG, in the page's own colours: dots with intervals, ranks by measure.

Legend: coordinates are CSS pixels of the drawing's box; accuracies are per cent.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mim_bench.analysis.figures.color import NUM_COLORS, line_number, marker_number

_ROW, _TOP, _BOTTOM, _LEVEL = 26, 10, 34, 13
_STEPS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
_LETTER = 0.6
"""Width of a letter over the size of the font, on the safe side."""
_SMALL = 11
_MARKERS = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z", "M-4.5,-4.5h9v9h-9z", "M0,-6.4L6.4,0L0,6.4L-6.4,0z",
    "M0,-5.6L5.6,5H-5.6z", "M0,5.6L5.6,-5H-5.6z",
    "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "M-5.7,-2.9l2.8,-2.8l2.9,2.8l2.9,-2.8l2.8,2.8l-2.8,2.9l2.8,2.9l-2.8,2.8l-2.9,-2.8l-2.9,2.8l-2.8,-2.8l2.8,-2.9z",
)  # fmt: skip
"""Outlines of the figures' markers, in their order (`color.MARKERS`)."""


@dataclass(frozen=True)
class Dots:
    """One row of a dot plot."""

    label: str
    mean: float
    half: float | None
    """Half the 95 % interval; unset below three seeds."""
    of_seeds: tuple[float, ...]
    look: int | None
    """Number of its look (see `figures.color`); unset for rows without a target, in grey."""
    is_hollow: bool
    """Below a gate."""


@dataclass(frozen=True)
class _Shape:
    """Measures of a dot plot: the wide one has the names at the left, that of a phone above their dots."""

    name: str
    width: int
    left: int
    right: int
    bracket: int
    """Distance of brackets."""
    row: int
    dots: int
    """Place of the dots below the top of their row."""


_SHAPES = (_Shape("wide", 760, 210, 104, 12, _ROW, 13), _Shape("narrow", 358, 8, 76, 10, 40, 27))


def dot_plot(
    rows: Sequence[Dots], levels: dict[str, float], groups: Sequence[Sequence[int]]
) -> Markup:
    """Rows from the greatest mean down; `levels` are lines across, `groups` rows of which no two can be separated.

    Twice, for wide and narrow windows: the page shows one of them.
    """
    ends = [
        value
        for row in rows
        for value in (*row.of_seeds, row.mean - (row.half or 0), row.mean + (row.half or 0))
    ]
    axis = _axis([*ends, *levels.values()])
    return Markup("").join(_dot_plot(rows, levels, groups, axis, shape) for shape in _SHAPES)


def _dot_plot(
    rows: Sequence[Dots],
    levels: dict[str, float],
    groups: Sequence[Sequence[int]],
    axis: tuple[float, float, float],
    shape: _Shape,
) -> Markup:
    low, high, step = axis
    end = shape.width - shape.right

    def x(value: float) -> float:
        return round(shape.left + (value - low) / (high - low) * (end - shape.left), 1)

    places = _level_places({name: x(value) for name, value in levels.items()}, shape.width)
    top = _TOP + _LEVEL * (1 + max((line for _, line in places.values()), default=0))
    floor = top + shape.row * len(rows) + 4
    parts = [
        _line(x(tick), top, x(tick), floor, "rule")
        + _text(x(tick), floor + 18, f"{tick:g}", "soft middle")
        for tick in _ticks(low, high, step)
    ]
    parts.append(_text(end, floor + 18, "%", "soft", dx=14))
    for name, (_, line) in places.items():
        parts.append(
            _line(x(levels[name]), _TOP + _LEVEL * line + 3, x(levels[name]), floor, "level")
        )
    for name, (start, line) in places.items():
        parts.append(_text(start, _TOP + _LEVEL * line, name, "soft small halo"))
    for position, row in enumerate(rows):
        row_top = top + shape.row * position
        is_wide = shape.name == "wide"
        at = (shape.left - 14, row_top + shape.dots + 4) if is_wide else (0, row_top + 13)
        parts.append(_text(*at, row.label, "end" if is_wide else "halo"))
        parts += _dots_of(row, x, row_top + shape.dots)
    for number, group in enumerate(groups):
        at = end + 20 + shape.bracket * number
        heights = [top + shape.row * position + shape.dots for position in group]
        parts.append(_line(at, heights[0], at, heights[-1], "bracket"))
        parts += [_circle(at, y, 3, "member") for y in heights]
    best = ", ".join(f"{row.label} {row.mean:.1f}" for row in rows)
    return _svg(shape.width, floor + 30, f"accuracy in per cent: {best}", parts, shape.name)


def _dots_of(row: Dots, x: Callable[[float], float], y: float) -> list[Markup]:
    """Seeds, interval and mean of a row."""
    color = _color(row.look)
    parts = [_circle(x(value), y, 2, f"seed {color}") for value in row.of_seeds]
    if row.half is not None:
        parts.append(_line(x(row.mean - row.half), y, x(row.mean + row.half), y, f"bar {color}"))
    css_class = "hollow" if row.is_hollow else "dot"
    return [*parts, _marker(x(row.mean), y, css_class, row.look)]


def _level_places(at: Mapping[str, float], width: int) -> dict[str, tuple[float, int]]:
    """Name of a line across -> where its text begins, and the number of its line of text, so that no two touch."""
    places: dict[str, tuple[float, int]] = {}
    ends: list[float] = []
    for name, x in sorted(at.items(), key=lambda item: item[1]):
        length = _LETTER * _SMALL * len(name)
        start = round(min(max(x - length / 2, 0), width - length), 1)
        line = next((line for line, end in enumerate(ends) if start > end + 8), len(ends))
        ends[line : line + 1] = [start + length]
        places[name] = start, line
    return places


def rank_plot(
    headings: Sequence[str],
    ranks: Mapping[str, Sequence[int | None]],
    looks: Mapping[str, int | None],
) -> Markup:
    """Place of each row (1: greatest mean) under each measure, a line a row."""
    gap, left, top = 104, 190, 24
    floor = top + _ROW * len(ranks)
    wrapped = [_wrapped(heading) for heading in headings]
    parts = [
        _text(left + gap * position, floor + 18 + 13 * number, line, "soft middle small")
        for position, lines in enumerate(wrapped)
        for number, line in enumerate(lines)
    ]
    for label, of_measures in ranks.items():
        points = [
            (left + gap * position, top + _ROW * (rank - 0.5))
            for position, rank in enumerate(of_measures)
            if rank is not None
        ]
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        shape = Markup('<polyline class="path {} l{}" points="{}"/>')
        parts.append(shape.format(_color(looks[label]), line_number(looks[label] or 0), path))
        parts += [_marker(x, y, "dot", looks[label]) for x, y in points]
        parts.append(_text(left - 16, points[0][1] + 4, label, "end"))
    width = left + gap * (len(headings) - 1) + 70
    height = floor + 18 + 13 * max(map(len, wrapped))
    return _svg(width, height, "place of each row under each measure", parts, "ranks")


def _axis(values: Sequence[float]) -> tuple[float, float, float]:
    """Ends and step of an axis with about six ticks."""
    low, high = min(values), max(values)
    span = max(high - low, 0.5)
    step = next((step for step in _STEPS if span / step <= 7), _STEPS[-1])
    return low - 0.05 * span, high + 0.05 * span, step


def _ticks(low: float, high: float, step: float) -> list[float]:
    return [round(step * n, 6) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _wrapped(heading: str) -> list[str]:
    """Text wrapped into at most three lines of about 16 letters."""
    lines = [""]
    for word in heading.split():
        if lines[-1] and len(lines[-1]) + len(word) > 15 and len(lines) < 3:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _color(look: int | None) -> str:
    return "grey" if look is None else f"c{look % NUM_COLORS}"


# numbers and names of ours need no escaping, which is slow for thousands of seeds
def _line(x1: float, y1: float, x2: float, y2: float, css_class: str) -> Markup:
    return Markup(f'<line class="{css_class}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>')


def _circle(x: float, y: float, radius: float, css_class: str) -> Markup:
    return Markup(f'<circle class="{css_class}" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>')


def _marker(x: float, y: float, css_class: str, look: int | None) -> Markup:
    outline = _MARKERS[marker_number(look or 0)]
    return Markup(
        f'<path class="{css_class} {_color(look)}" transform="translate({x:g} {y:g})" d="{outline}"/>'
    )


def _text(x: float, y: float, text: str, css_class: str, dx: float = 0) -> Markup:
    return Markup('<text class="{}" x="{:g}" y="{:g}">{}</text>').format(css_class, x + dx, y, text)


def _svg(
    width: float, height: float, description: str, parts: Sequence[Markup], css_class: str
) -> Markup:
    head = Markup(
        '<svg class="drawing {}" role="img" aria-label="{}" viewBox="0 0 {:g} {:g}" style="--width: {:g}">'
    )
    return (
        head.format(css_class, description, width, height, width)
        + Markup("").join(parts)
        + Markup("</svg>")
    )
