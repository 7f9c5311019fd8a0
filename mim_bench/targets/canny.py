"""Canny's edges of grey images (Canny 1986, PAMI 8), on any device and of a whole batch at once.

A Gaussian of 1 pixel, Sobel gradients, thinning to pixels whose magnitude is not below its two interpolated neighbours
along the gradient, then hysteresis: connected pixels above the low threshold that hold one above the high. Widths and
thresholds are the defaults of scikit-image's `canny`, whose edges these are.

Deliberate difference: an edge is followed for H + W pixels from a strong one, so that nothing waits for the device.

Legend: B batch, H W image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_STD, _RADIUS = 1.0, 4
"""Standard deviation of the Gaussian, in pixels."""
_LOW, _HIGH = 0.1, 0.2
"""Thresholds on the magnitude of Sobel's gradient with weights 1, 2, 1, of grey in [0, 1]."""


def canny(grey: Tensor) -> Tensor:
    """(B, 1, H, W) float64 in [0, 1] -> bool of the same shape: True on an edge, never at the border."""
    smooth = _smooth(grey)
    vertical, horizontal = _gradient(smooth, 2), _gradient(smooth, 3)
    magnitude = (vertical * vertical + horizontal * horizontal).sqrt()
    weak = _thin(magnitude, vertical, horizontal) & (magnitude >= _LOW)
    edges = (weak & (magnitude >= _HIGH)).float()
    for _ in range(sum(grey.shape[2:])):
        edges = F.max_pool2d(edges, 3, stride=1, padding=1) * weak
    return edges > 0


def _smooth(grey: Tensor) -> Tensor:
    """The Gaussian mean of the pixels that there are."""
    return _blur(grey) / _blur(torch.ones_like(grey))


def _blur(images: Tensor) -> Tensor:
    """Blur by sums of slices: the same on every device and in every batch."""
    weights = [math.exp(-0.5 * (k / _STD) ** 2) for k in range(-_RADIUS, _RADIUS + 1)]
    height, width = images.shape[2:]
    padded = F.pad(images, (0, 0, _RADIUS, _RADIUS))
    rows = sum(
        (w * padded[:, :, k : k + height] for k, w in enumerate(weights)), torch.zeros_like(images)
    )
    padded = F.pad(rows, (_RADIUS, _RADIUS))
    return sum(
        (w * padded[..., k : k + width] for k, w in enumerate(weights)), torch.zeros_like(images)
    )


def _gradient(images: Tensor, dim: int) -> Tensor:
    """Sobel's derivative along rows (2) or columns (3); borders repeat."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    size = padded.shape[dim] - 2
    step = padded.narrow(dim, 2, size) - padded.narrow(dim, 0, size)
    across = 5 - dim
    low, middle, high = (step.narrow(across, k, step.shape[across] - 2) for k in range(3))
    return low + 2 * middle + high


def _thin(magnitude: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """True where a pixel's magnitude is at least that of both points one step along the gradient, each between the
    straight and the diagonal neighbour; False at the border."""
    height, width = magnitude.shape[2:]
    padded = F.pad(magnitude, (1, 1, 1, 1))

    def shifted(y: int, x: int) -> Tensor:
        return padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width]

    is_steep = vertical.abs() > horizontal.abs()  # the straight neighbour is above and below
    larger = torch.where(is_steep, vertical.abs(), horizontal.abs())
    smaller = torch.where(is_steep, horizontal.abs(), vertical.abs())
    slant = smaller / larger.clamp_min(torch.finfo(larger.dtype).tiny)
    same_sign = vertical * horizontal >= 0
    is_largest = torch.ones_like(same_sign)
    for side in (1, -1):
        straight = torch.where(is_steep, shifted(side, 0), shifted(0, side))
        # of opposite signs the gradient that goes down goes left
        rising = torch.where(is_steep, shifted(side, -side), shifted(-side, side))
        diagonal = torch.where(same_sign, shifted(side, side), rising)
        is_largest &= slant * diagonal + (1 - slant) * straight <= magnitude
    inside = F.pad(torch.ones_like(magnitude[..., 1:-1, 1:-1]), (1, 1, 1, 1)) > 0
    return is_largest & inside
