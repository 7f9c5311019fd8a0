"""A codebook of unit vectors that follows what is assigned to it: BEiT v2 (Peng et al. 2022, arXiv 2208.06366, eq. 1).

Outputs of an encoder are normalised and take the code of the smallest angle; gradients pass as if they had not
(van den Oord et al. 2017, arXiv 1711.00937, section 3.1), and codes are moving averages of their outputs (its
appendix A.1). A code that is hardly used begins again at some output, without which most of a codebook dies.

Legend: B batch, c width of a code, h w token grid, V codes, N = B * h * w outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_SHARE = 0.1
"""Least use of a code, as a fraction of an equal share: a code below it begins again."""
_SHARE_DECAY = 0.9
"""Rate of the shares' moving average: a code without outputs begins again after 22 updates."""


class Quantizer(nn.Module):
    """(B, c, h, w) outputs -> the codes that they take."""

    codes: Tensor
    share: Tensor

    def __init__(self, num_codes: int, width: int, decay: float) -> None:
        """No code is in use, so the first update draws all of them from the outputs that it sees."""
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", torch.zeros(num_codes, width))
        self.register_buffer("share", torch.zeros(num_codes))

    def index(self, outputs: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, h, w) int64; the length of an output plays no part."""
        return torch.einsum("bchw,vc->bvhw", F.normalize(outputs, dim=1), self.codes).argmax(1)

    def look_up(self, index: Tensor) -> Tensor:
        """(B, h, w) -> codes (B, c, h, w)."""
        return F.embedding(index, self.codes).movedim(-1, 1)

    def forward(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, c, h, w) -> their codes, through which gradients pass, and the mean of 1 - cosine to them (scalar)."""
        units = F.normalize(outputs, dim=1)
        codes = self.look_up(self.index(units))
        distance = 1 - (units * codes).sum(1).mean()
        return units + (codes - units).detach(), distance

    @torch.no_grad()
    def update(self, outputs: Tensor) -> None:
        """Moves codes to the outputs (B, c, h, w) that take them; hardly used ones start anew at a random output."""
        units = F.normalize(outputs, dim=1)
        rows = units.movedim(1, -1).flatten(0, 2)  # (N, c)
        num = len(self.codes)
        initial = rows[torch.randperm(len(rows), device=rows.device)[torch.arange(num) % len(rows)]]
        is_idle = self.share < _LEAST_SHARE / num
        self.codes.copy_(torch.where(is_idle[:, None], initial, self.codes))
        self.share.copy_(torch.where(is_idle, 1 / num, self.share))
        assigned = F.one_hot(self.index(units).flatten(), num).to(rows)  # (N, V)
        self.share.lerp_(assigned.mean(0), 1 - _SHARE_DECAY)
        updated = self.codes.lerp(F.normalize(assigned.T @ rows, dim=1), 1 - self.decay)
        self.codes.copy_(
            torch.where(assigned.any(0)[:, None], F.normalize(updated, dim=1), self.codes)
        )
