"""Looks of targets, the same in every figure and in the report: a number gives colour, marker and line; and text in
those colours that is legible on white.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import to_hex, to_rgb

Line = str | tuple[float, tuple[float, ...]]
NUM_COLORS = 7
MARKERS = "osD^vPX"
"""As many as colours, so that a marker and a colour belong to one number below 49."""
LINES: tuple[Line, ...] = (
    "-", (0, (4, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (1, 1.2)), (0, (10, 2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)),
    (0, (10, 1.5, 3, 1.5)),
)  # fmt: skip
"""Matplotlib's line styles, one for all colours before the next."""
_ORDER = (
    "pixel", "norm_pixel", "hog", "dvae", "ema_feature", "mean_color", "downsized",
    "palette", "patch_kmeans", "frequency", "fourier", "wavelet", "edges", "canny",
    "hog_multiscale", "hog_pixel", "random_projection", "random_feature", "pca", "bootstrap", "ema_token",
    "latent_cluster", "relation", "vq_perceptual", "vq_distilled", "contrastive", "feature",
)  # fmt: skip
"""Targets by number; those of others come behind in the order at hand. A new one goes to the end."""
_LEGIBLE = 4.6
"""Contrast of text, WCAG's 4.5 and a little for the rounding."""


def look_numbers(targets: Mapping[str, str]) -> dict[str, int]:
    """Label -> number of its look, from label -> target: the target's own, of a target's further rows the next free
    number of the same colour.
    """
    order = list(dict.fromkeys([*_ORDER, *targets.values()]))
    first = {target: label for label, target in reversed(list(targets.items()))}
    numbers: dict[str, int] = {}
    for label, target in sorted(targets.items(), key=lambda item: item[0] != first[item[1]]):
        number = order.index(target)
        while number in numbers.values():
            number += NUM_COLORS
        numbers[label] = number
    return numbers


def marker_number(number: int) -> int:
    """Place of a look's marker in `MARKERS`."""
    return sum(divmod(number, NUM_COLORS)) % len(MARKERS)


def line_number(number: int) -> int:
    """Place of a look's line in `LINES`."""
    return number // NUM_COLORS % len(LINES)


# ---- contrast (WCAG 2.1) ----


def _linear(color: str) -> tuple[np.ndarray, float]:
    """(3,) linear light and relative luminance."""
    rgb = np.array(to_rgb(color))
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return light, float(light @ (0.2126, 0.7152, 0.0722))


def contrast(one: str, other: str) -> float:
    """1 to 21."""
    low, high = sorted(_linear(color)[1] for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def legible(color: str) -> str:
    """A colour for text on white: the same, as dark as text has to be."""
    light, luminance = _linear(color)
    light *= min(1.0, (1.05 / _LEGIBLE - 0.05) / max(luminance, 1e-9))
    rgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return to_hex(rgb.tolist())


def text_on(color: str) -> str:
    """Black or white, whichever is better seen on a colour."""
    return max(("black", "white"), key=lambda text: contrast(text, color))
