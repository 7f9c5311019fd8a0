"""Pictures of images, targets and predictions: rows of labelled tiles on a white sheet, saved as PNG.

Pixels are enlarged by whole factors and placed one to one, so that nothing is blurred.

Legend: N images, C channels, H W image, H' W' = k*H k*W with a whole k, L patches (row-major grid).
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from mim_bench.files import replacing
from mim_bench.records import png_stamp
from mim_bench.target import Geometry, to_rgb

_DPI = 100
_MIN_TILE = 112
"""Pixels; an image is enlarged by the least whole factor that makes its shorter side this long."""
GAP, _LEFT, _TOP, _BOTTOM = 6, 132, 44, 34
"""Pixels between tiles, and the margins for row labels, title and footnote."""
_MIN_WIDTH, _FOOTNOTE_LETTERS, _FOOTNOTE_LINE = 560, 74, 14
"""Pixels and letters; room for the title where there are few images, and lines of the footnote."""
HIDDEN_GREY = 0.62
_INK, _SOFT_INK, _FONT = "#1a1a1a", "#5f5f5f", "DejaVu Sans"
_FOOTNOTE = (
    "Drawn with statistics of the true image (a patch's mean and std; axes of features) "
    "that the model did not predict."
)


def grid_figure(
    *,
    target_name: str,
    images: Tensor,
    mask: Tensor,
    target: Tensor,
    prediction: Tensor,
    geometry: Geometry,
    ground_truth: bool,
    title: str,
) -> Figure:
    """Four labelled rows with one column an image: image, image with the hidden patches grey, target, prediction.

    In the last row the visible patches show the target, as no prediction was trained there.

    Args:
        target_name: for the row label.
        images: (N, C, H, W) in [0, 1].
        mask: (N, L) bool, True = hidden.
        target: (N, 3, H', W') in [0, 1], `Target.picture` of the target's values.
        prediction: the same of the model's prediction; only its hidden patches are shown.
        geometry: the target's.
        ground_truth: whether statistics of the true image were used to draw; the picture then says so.
        title: one line at the top.
    """
    rgb = to_rgb(images.detach().float().cpu())
    target, prediction = (x.detach().float().cpu().clamp(0, 1) for x in (target, prediction))
    hidden = mask.detach().cpu().bool()
    _check(rgb, hidden, target, prediction, geometry)

    height, width = geometry.image_size
    factor = target.shape[-1] // width
    min_side = _MIN_TILE if len(rgb) > 2 else 2 * _MIN_TILE
    factor *= max(1, -(-min_side // (factor * min(height, width))))
    rgb, target, prediction = (enlarge(x, factor * width) for x in (rgb, target, prediction))
    covered = enlarge(hidden.view(-1, 1, *geometry.grid).float(), factor * width) > 0.5
    rows = (
        ("image", "", rgb),
        ("input", "hidden patches grey", torch.where(covered, HIDDEN_GREY, rgb)),
        ("target", textwrap.fill(target_name, 24), target),
        ("prediction", "of hidden patches;\ntarget elsewhere", torch.where(covered, prediction, target)),
    )  # fmt: skip
    if not hidden.any():  # views are compared, nothing is predicted
        rows = (rows[0], rows[2])
    return compose(rows, title=title, footnote=_FOOTNOTE if ground_truth else "")


def _check(
    images: Tensor, hidden: Tensor, target: Tensor, prediction: Tensor, geometry: Geometry
) -> None:
    """Raises ValueError where shapes do not belong together."""
    num, (height, width) = images.shape[0], geometry.image_size
    if num == 0 or images.shape[2:] != (height, width):
        raise ValueError(f"images {tuple(images.shape)} for image size {height} x {width}")
    if hidden.shape != (num, geometry.num_patches):
        raise ValueError(f"mask {tuple(hidden.shape)}, expected {(num, geometry.num_patches)}")
    factor = target.shape[-1] // width
    expected = (num, 3, factor * height, factor * width)
    if factor < 1 or target.shape != expected or prediction.shape != expected:
        raise ValueError(
            f"target {tuple(target.shape)}, prediction {tuple(prediction.shape)}: both must be "
            f"({num}, 3, k*{height}, k*{width})"
        )


def enlarge(images: Tensor, width: int) -> Tensor:
    """(N, C, h, w) -> the same with each pixel repeated so that the width is `width`."""
    factor = width // images.shape[-1]
    return images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def compose(rows: tuple[tuple[str, str, Tensor], ...], *, title: str, footnote: str) -> Figure:
    """Rows of (name, remark, tiles (N, 3, h, w)) -> a figure, one figure pixel a tile pixel."""
    num, _, tile_height, tile_width = rows[0][2].shape
    width = max(_LEFT + num * (tile_width + GAP) + 2 * GAP, _MIN_WIDTH)
    lines = textwrap.wrap(footnote, _FOOTNOTE_LETTERS * (width - _LEFT) // (_MIN_WIDTH - _LEFT))
    bottom = _BOTTOM + _FOOTNOTE_LINE * (len(lines) - 1) if lines else 2 * GAP
    height = _TOP + len(rows) * (tile_height + GAP) + bottom
    figure = lay_out([tiles for _, _, tiles in rows], width, height, left=_LEFT, top=_TOP)
    for row, (name, remark, _) in enumerate(rows):
        middle = 1 - (_TOP + row * (tile_height + GAP) + tile_height / 2) / height
        step = (3 if remark else 0) / height
        va = "bottom" if remark else "center"
        text(figure, _LEFT - 12, middle + step, name, ha="right", va=va, size=10, weight="bold")
        text(figure, _LEFT - 12, middle - step, remark, ha="right", va="top", color=_SOFT_INK)
    text(figure, _LEFT, 1 - _TOP / 2 / height, title, size=11)
    for line_index, line in enumerate(reversed(lines)):
        y = _BOTTOM / 2 + _FOOTNOTE_LINE * line_index
        text(figure, _LEFT, y / height, line, color=_SOFT_INK)
    return figure


def lay_out(rows: Sequence[Tensor], width: int, height: int, *, left: int, top: int) -> Figure:
    """Rows of (N, 3, h, w) tiles on a white sheet of `width` x `height` pixels, one to one."""
    sheet = np.ones((height, width, 3), dtype=np.float32)
    tile_height, tile_width = rows[0].shape[2:]
    for row, tiles in enumerate(rows):
        y = top + row * (tile_height + GAP)
        for column, tile in enumerate(tiles.permute(0, 2, 3, 1).numpy()):
            x = left + column * (tile_width + GAP)
            sheet[y : y + tile_height, x : x + tile_width] = tile
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    figure.figimage((sheet * 255).round().astype(np.uint8), zorder=-1)
    return figure


def text(
    figure: Figure,
    left: float,
    y: float,
    text: str,
    *,
    ha: Literal["left", "right"] = "left",
    va: Literal["top", "center", "bottom"] = "center",
    size: float = 7.5,
    weight: str = "normal",
    color: str = _INK,
) -> None:
    """Text at `left` pixels from the left and `y` of the height from below."""
    x = left / (figure.get_figwidth() * _DPI)
    style = FontProperties(family=_FONT, size=size, weight=weight)
    figure.text(x, y, text, ha=ha, va=va, color=color, fontproperties=style, parse_math=False)


def write(figure: Figure, path: Path, metadata: Mapping[str, str | None] | None = None) -> None:
    """Saves as PNG, atomically; `metadata` as matplotlib takes it."""
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary, metadata=metadata)


def write_frames(
    frames: Mapping[str, Figure], path: Path, metadata: Mapping[str, str | None] | None = None
) -> None:
    """Saves figures of one size below one another as PNG, their labels in it; the report shows one at a time."""
    rendered = []
    for figure in frames.values():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        rendered.append(np.asarray(canvas.buffer_rgba())[:, :, :3])
    info = PngInfo()
    for key, value in {**(metadata or {}), **png_stamp.frames(list(frames))}.items():
        if value is not None:
            info.add_text(key, value)
    with replacing(path) as temporary:
        Image.fromarray(np.concatenate(rendered)).save(
            temporary, "PNG", pnginfo=info, optimize=True
        )
