"""Small drawings of the page as SVG, in the page's own colours: dots with intervals, ranks by measure.

Legend: coordinates are CSS pixels of the drawing's box; accuracies are per cent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

_ROW, _TOP, _BOTTOM = 26, 34, 34
_WIDTH, _LEFT, _RIGHT = 760, 210, 90
_STEPS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


@dataclass(frozen=True)
class Dots:
    """One row of a dot plot."""

    label: str
    mean: float
    half: float | None
    """Half the 95 % interval; unset below three seeds."""
    of_seeds: tuple[float, ...]
    color: int
    is_hollow: bool
    """Below a gate."""


def dot_plot(rows: Sequence[Dots], levels: dict[str, float], groups: Sequence[range]) -> Markup:
    """Rows from the greatest mean down; `levels` are lines across, `groups` rows that cannot be separated."""
    ends = [
        value
        for row in rows
        for value in (*row.of_seeds, row.mean - (row.half or 0), row.mean + (row.half or 0))
    ]
    low, high, step = _axis([*ends, *levels.values()])
    height = _TOP + _ROW * len(rows) + _BOTTOM
    floor = height - _BOTTOM + 4

    def x(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    parts = [_line(x(tick), _TOP - 8, x(tick), floor, "rule") + _text(x(tick), floor + 18, f"{tick:g}", "soft middle")
             for tick in _ticks(low, high, step)]  # fmt: skip
    parts.append(_text(_WIDTH - _RIGHT, floor + 18, "%", "soft", dx=14))
    for position, (name, value) in enumerate(sorted(levels.items(), key=lambda item: item[1])):
        parts.append(_line(x(value), _TOP - 8, x(value), floor, "level"))
        parts.append(_text(x(value), 10 + 12 * (position % 2), name, "soft middle small"))
    for position, row in enumerate(rows):
        y = _TOP + _ROW * position + _ROW / 2
        parts.append(_text(_LEFT - 14, y + 4, row.label, "end"))
        parts += [_circle(x(value), y, 2, f"seed c{row.color}") for value in row.of_seeds]
        if row.half is not None:
            parts.append(
                _line(x(row.mean - row.half), y, x(row.mean + row.half), y, f"bar c{row.color}")
            )
        css_class = "hollow" if row.is_hollow else "dot"
        parts.append(_circle(x(row.mean), y, 5, f"{css_class} c{row.color}"))
    for position, group in enumerate(groups):
        at = _WIDTH - _RIGHT + 30 + 12 * position
        top, end = _TOP + _ROW * group.start + 6, _TOP + _ROW * group.stop - 6
        parts.append(_line(at, top, at, end, "bracket"))
    best = ", ".join(f"{row.label} {row.mean:.1f}" for row in rows)
    return _svg(_WIDTH, height, f"accuracy in per cent: {best}", parts)


def rank_plot(
    headings: Sequence[str], ranks: Mapping[str, Sequence[int | None]], colors: dict[str, int]
) -> Markup:
    """Place of each row (1: greatest mean) under each measure, a line a row."""
    gap, left, top = 104, 190, 24
    height = top + _ROW * len(ranks) + 64
    parts = []
    for position, heading in enumerate(headings):
        at = left + gap * position
        for number, line in enumerate(_wrapped(heading)):
            parts.append(
                _text(at, top + _ROW * len(ranks) + 18 + 13 * number, line, "soft middle small")
            )
    for label, of_measures in ranks.items():
        points = [
            (left + gap * position, top + _ROW * (rank - 0.5))
            for position, rank in enumerate(of_measures)
            if rank is not None
        ]
        if not points:
            continue
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        shape = Markup('<polyline class="path c{}" points="{}"/>')
        parts.append(shape.format(colors[label], path))
        parts += [_circle(x, y, 5, f"dot c{colors[label]}") for x, y in points]
        parts.append(_text(left - 16, points[0][1] + 4, label, "end"))
    width = left + gap * (len(headings) - 1) + 70
    return _svg(width, height, "place of each row under each measure", parts)


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


# numbers and names of ours need no escaping, which is slow for thousands of seeds
def _line(x1: float, y1: float, x2: float, y2: float, css_class: str) -> Markup:
    return Markup(f'<line class="{css_class}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>')


def _circle(x: float, y: float, radius: float, css_class: str) -> Markup:
    return Markup(f'<circle class="{css_class}" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>')


def _text(x: float, y: float, text: str, css_class: str, dx: float = 0) -> Markup:
    return Markup('<text class="{}" x="{:g}" y="{:g}">{}</text>').format(css_class, x + dx, y, text)


def _svg(width: float, height: float, description: str, parts: Sequence[Markup]) -> Markup:
    head = Markup(
        '<svg class="drawing" role="img" aria-label="{}" viewBox="0 0 {:g} {:g}" style="--width: {:g}">'
    )
    return (
        head.format(description, width, height, width) + Markup("").join(parts) + Markup("</svg>")
    )
