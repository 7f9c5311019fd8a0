"""Position tables, absolute and relative, fitted to the grid of the images; what was interpolated is said.

Legend: D width, P positions of an absolute table, h w grid of patches.
"""

from typing import Any

from timm.layers import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from torch import Tensor

from mim_bench.errors import UserError

Grid = tuple[int, int]
_EXTRA = 3
"""Rows of a relative table beyond the offsets between patches: class token to patch, patch to it, and itself."""


def grid_of(image_size: Grid, patch_size: int) -> Grid:
    """Patches of an image of (height, width); UserError where they do not fit it."""
    if image_size[0] % patch_size or image_size[1] % patch_size:
        raise UserError(f"image_size={image_size} is no multiple of the patch size {patch_size}")
    return image_size[0] // patch_size, image_size[1] // patch_size


def fit_absolute(
    tensors: dict[str, Tensor], prefix: int, grid: Grid | None, notes: list[str]
) -> tuple[Grid, bool]:
    """Grid of the encoder, and whether its table has positions of the prefix tokens too.

    The table of `tensors` is replaced where it is of another grid than `grid`. Where the class token alone has one
    beside registers (DINOv2), it is added to that token, which is the same function.
    """
    table = tensors.get("pos_embed")
    if table is None or table.ndim != 3:
        state = "absent" if table is None else f"of shape {tuple(table.shape)}"
        raise UserError(f"pos_embed is {state}; needed is a table (1, P, D) of absolute positions")
    length = table.shape[1]
    inside, stored_grid = _own_grid(length, prefix, grid)
    if inside == 1 and prefix > 1:
        tensors["cls_token"] = tensors["cls_token"] + table[:, :1]
        table = tensors["pos_embed"] = table[:, 1:]
        inside = 0
    if grid is None or stored_grid == grid:
        return stored_grid, inside == prefix
    notes.append(_interpolated("position table", stored_grid, grid))
    resample: Any = resample_abs_pos_embed  # scripted by torch, which hides its signature
    tensors["pos_embed"] = resample(
        table, new_size=list(grid), old_size=list(stored_grid), num_prefix_tokens=inside
    )
    return grid, inside == prefix


def _own_grid(length: int, prefix: int, expected: Grid | None) -> tuple[int, Grid]:
    """Prefix tokens in an absolute table, and the grid of the rest: the expected one, or a square."""
    choices = dict.fromkeys((prefix, 0, min(prefix, 1)))
    for inside in choices:
        if expected and length - inside == expected[0] * expected[1]:
            return inside, expected
    for inside in choices:
        side = round((length - inside) ** 0.5)
        if side * side == length - inside:
            return inside, (side, side)
    raise UserError(f"{length} positions are no square grid; give image_size")


def fit_relative(tensors: dict[str, Tensor], grid: Grid | None, notes: list[str]) -> Grid:
    """Grid of the encoder; its relative tables are replaced where they are of another grid than `grid`."""
    names = [name for name in tensors if name.endswith("relative_position_bias_table")]
    length, num_heads = tensors[names[0]].shape
    if grid and length == (2 * grid[0] - 1) * (2 * grid[1] - 1) + _EXTRA:
        return grid
    side = (round(max(0, length - _EXTRA) ** 0.5) + 1) // 2
    if length != (2 * side - 1) ** 2 + _EXTRA:
        raise UserError(f"{names[0]} has {length} offsets, of no square grid; give image_size")
    if grid is None:
        return side, side
    notes.append(_interpolated("relative position table", (side, side), grid))
    shape = ((2 * grid[0] - 1) * (2 * grid[1] - 1) + _EXTRA, num_heads)
    for name in names:
        tensors[name] = resize_rel_pos_bias_table(
            tensors[name], new_window_size=grid, new_bias_shape=shape
        )
    return grid


def _interpolated(noun: str, old: Grid, new: Grid) -> str:
    return f"{noun} interpolated from {old[0]} x {old[1]} to {new[0]} x {new[1]} patches"
