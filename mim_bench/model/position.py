"""Fixed two-dimensional position tables of sines and cosines (MAE; Vaswani et al. 2017).

Convention (tests/golden, mae_pos_embed.npz): a vector of width D is [sin(col w), cos(col w),
sin(row w), cos(row w)] with w = 10000^(-k / (D/4)), k = 0 .. D/4 - 1, in blocks, the column first.
"""

import torch
from torch import Tensor


def sincos_table(grid: tuple[int, int], dim: int) -> Tensor:
    """(G_h, G_w) grid -> (1 + L, D) float64; row 0, the class token's, is zero. D: a multiple of 4."""
    if dim % 4:
        raise ValueError(f"dim={dim} is no multiple of 4")
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows = torch.arange(grid[0], dtype=torch.float64)[:, None].expand(grid).reshape(-1, 1)
    columns = torch.arange(grid[1], dtype=torch.float64)[None, :].expand(grid).reshape(-1, 1)
    angles = [columns * frequency, rows * frequency]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, dim, dtype=torch.float64), table])
