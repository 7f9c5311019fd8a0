"""Crop and resize 8-bit images in batches, bit for bit as Pillow's `crop(...).resize(...)` does.

Pillow's 8-bit resampling is integer arithmetic: weights rounded to 22 fractional bits, each pass
rounded and clipped to 8 bits. Here each pass is one batched float64 product with dense integer-valued
weights. Every partial sum is an integer below 2^53, so the result does not depend on the order of
summation: the same on every device and in every batch.
Reference: Pillow's `Image.resize` with BICUBIC or BILINEAR (test_resample compares, pixel by pixel).
Deliberate difference: the horizontal pass always comes first, as in Pillow up to 12. Pillow 13 goes
vertically first where that is less work (its pull request 9549), which moves some pixels by a level;
asking it for one direction at a time makes the pixels the same under every version.

Legend: B images, C channels, H W source size, h w output size, S the longer source side.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear"]
Image8 = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
"""One image, (H, W, C) uint8."""

_BITS = 22
_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}
_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_DENSE_DEVICES = ("cuda",)
_DENSE_SIDE = 512
"""Up to this source side the table of weights stays below 1 GB."""
_CHUNK_BYTES = 256 << 20
"""Bytes of float64 intermediates at a time."""


def _filter(x: np.ndarray, interpolation: Interpolation) -> np.ndarray:
    x = np.abs(x)
    if interpolation == "bilinear":
        return np.where(x < 1, 1 - x, 0.0)
    a = -0.5
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inner, np.where(x < 2, far, 0.0))


def weights(length: int, size: int, interpolation: Interpolation = "bicubic") -> np.ndarray:
    """(size, length) float64, integers in units of 2^-22: one row for each output pixel."""
    scale = length / size
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    center = (np.arange(size)[:, None] + 0.5) * scale
    first = np.maximum(np.trunc(center - support + 0.5), 0)
    end = np.minimum(np.trunc(center + support + 0.5), length)
    x = np.arange(length)[None, :]
    value = _filter((x - center + 0.5) * (1 / stretch), interpolation)
    value = np.where((x >= first) & (x < end), value, 0.0)
    value /= np.cumsum(value, axis=1)[:, -1:]  # cumsum adds from left to right, as Pillow does
    return np.trunc(value * (1 << _BITS) + np.copysign(0.5, value))


@lru_cache(maxsize=16)
def _table(side: int, size: int, interpolation: Interpolation, device: torch.device) -> Tensor:
    """(side * (side + 1), size) float64: row (length - 1) * (side + 1) + x weighs pixel x of a box.

    Rows with x >= length are zero.
    """
    table = np.zeros((side, side + 1, size))
    for length in range(1, side + 1):
        table[length - 1, :length] = weights(length, size, interpolation).T
    return torch.from_numpy(table).flatten(0, 1).to(device)


def _matrix(
    start: Tensor, length: Tensor, side: int, size: int, interpolation: Interpolation
) -> Tensor:
    """Boxes' (B,) first pixel and length along one axis -> (B, side, size) float64 weights."""
    x = torch.arange(side, device=start.device)[None, :] - start[:, None]
    x = torch.where((x >= 0) & (x < length[:, None]), x, side)
    rows = (length[:, None] - 1) * (side + 1) + x
    table = _table(side, size, interpolation, start.device)
    return table.index_select(0, rows.flatten()).view(len(start), side, size)


def _round(sums: Tensor) -> Tensor:
    """Sums in units of 2^-22 -> 8-bit levels, still float64; in place."""
    return sums.add_(1 << (_BITS - 1)).mul_(2.0**-_BITS).floor_().clamp_(0, 255)


def _dense(
    images: Tensor, boxes: Tensor, size: tuple[int, int], interpolation: Interpolation
) -> Tensor:
    """(B, C, H, W) uint8 and boxes on one device -> (B, C, h, w) uint8."""
    num, channels, height, width = images.shape
    top, left, box_height, box_width = boxes.unbind(1)
    across = _matrix(left, box_width, width, size[1], interpolation)
    vertical = _matrix(top, box_height, height, size[0], interpolation)
    rows = torch.bmm(images.view(num, channels * height, width).double(), across)
    rows = _round(rows).view(num, channels, height, size[1])
    return _round(torch.matmul(vertical.transpose(1, 2)[:, None], rows)).to(torch.uint8)


def _resize(pixels: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 -> (h, w) or (h, w, 3): across, then down."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.width != size[1]:
        image = image.resize((size[1], image.height), method)
    if image.height != size[0]:
        image = image.resize((size[1], size[0]), method)
    return np.asarray(image)


def cut(
    images: Sequence[Image8],
    boxes: Tensor,
    flips: Tensor,
    size: tuple[int, int],
    interpolation: Interpolation = "bicubic",
) -> np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]:
    """Resizes crops by Pillow: images (H, W, C) uint8 of any sizes, boxes and flips as `resample` -> (B, h, w, C)."""
    channels = images[0].shape[2]
    out = np.empty((len(images), *size, channels), dtype=np.uint8)
    method = _PILLOW[interpolation]
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        image = images[i][top : top + height, left : left + width]
        if (height, width) == size:
            out[i] = image
        elif channels == 3:
            out[i] = _resize(image, size, method)
        else:
            for c in range(channels):
                out[i, :, :, c] = _resize(image[:, :, c], size, method)
    flipped = flips.numpy()
    if flipped.any():
        out[flipped] = out[flipped, :, ::-1]
    return out


def resample(
    images: Tensor,
    boxes: Tensor,
    flips: Tensor,
    size: tuple[int, int],
    interpolation: Interpolation = "bicubic",
) -> Tensor:
    """(B, C, H, W) uint8 -> (B, C, h, w) uint8 on the same device: cropped, resized, then flipped.

    `boxes` (B, 4) int64 on the CPU: top, left, height, width in pixels, inside the image; `flips` (B,)
    bool on the CPU. On the CPU, where that is faster, on devices without float64 (MPS) and for sides
    above 512 pixels Pillow does the work; the pixels are the same.
    """
    num, channels, height, width = images.shape
    device = images.device
    is_whole = bool((boxes == torch.tensor([0, 0, *size])).all()) and (height, width) == size
    if not is_whole and (device.type not in _DENSE_DEVICES or max(height, width) > _DENSE_SIDE):
        arrays = images.cpu().permute(0, 2, 3, 1).numpy()
        out = torch.from_numpy(cut(list(arrays), boxes, flips, size, interpolation))
        return out.permute(0, 3, 1, 2).contiguous().to(device)
    if is_whole:
        out = images.clone()
    else:
        out = torch.empty((num, channels, *size), dtype=torch.uint8, device=device)
        device_boxes = boxes.to(device, non_blocking=True)
        sums = 2 * channels * width * max(height, size[0]) + height * size[0] + width * size[1]
        step = max(1, _CHUNK_BYTES // (8 * sums))
        for start in range(0, num, step):
            part = slice(start, start + step)
            out[part] = _dense(images[part].contiguous(), device_boxes[part], size, interpolation)
    if not bool(flips.any()):
        return out
    flipped = flips.to(device, non_blocking=True)[:, None, None, None]
    return torch.where(flipped, out.flip(-1), out)
