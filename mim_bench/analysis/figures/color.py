"""Colours of targets, the same in every figure and in the report."""

from collections.abc import Sequence

NUM_COLORS = 7
_NUMBERS = {
    name: number
    for number, name in enumerate(("pixel", "norm_pixel", "hog", "dvae", "ema_feature"))
}
"""Targets whose colour is the same in every figure; others take the colours that are left."""


def color_numbers(labels: Sequence[str]) -> dict[str, int]:
    """Label, or target -> number of its colour and marker: one that has the colour of another has its next marker."""
    others = [label for label in dict.fromkeys(labels) if label not in _NUMBERS]
    used = set(_NUMBERS.values()) if len(others) < len(set(labels)) else set()
    free = [number for number in range(NUM_COLORS) if number not in used]
    of_label = {
        label: free[position % len(free)] + NUM_COLORS * (position // len(free))
        for position, label in enumerate(others)
    }
    return of_label | {label: _NUMBERS[label] for label in labels if label in _NUMBERS}
