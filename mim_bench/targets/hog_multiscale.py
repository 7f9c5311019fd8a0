"""HOG at several cell sizes at once: LocalMIM (Wang et al. 2023, arXiv 2303.05251) and FastMIM predict gradients
at several scales.

Each scale is the target `hog` with cells of its own and counts alike in the loss.

Deliberate difference: LocalMIM predicts each scale from another layer through a decoder of its own; here the one
decoder predicts all, as for every other target.

Legend: B batch, L patches, S scales, dim the sum of their widths.
"""

from typing import cast

import torch
from torch import Tensor, nn

from mim_bench.config.target_params import HogMultiscaleParams, HogParams
from mim_bench.errors import UserError
from mim_bench.target import Target, TargetContext
from mim_bench.targets.hog import HogTarget


class HogMultiscaleTarget(Target):
    """HOG of each patch at several cell sizes, (B, L, dim) float32, the largest cells first."""

    Params = HogMultiscaleParams
    version = HogMultiscaleParams.version

    def __init__(self, params: HogMultiscaleParams, context: TargetContext) -> None:
        super().__init__(params, context)
        patch = self.geometry.patch_size
        sides = params.cells_per_side or tuple(
            n for n in (1, 2, 4, 8) if patch % n == 0 and patch // n >= 2
        )
        if not sides:
            raise UserError(f"hog_multiscale: patches of {patch} pixel have no cells of 2 pixels")
        self.scales = nn.ModuleList(
            HogTarget(HogParams(num_bins=params.num_bins, cells_per_side=n), context) for n in sides
        )
        self.widths = [scale.dim for scale in self._each()]
        self.dim = sum(self.widths)

    def _each(self) -> list[HogTarget]:
        return [cast(HogTarget, scale) for scale in self.scales]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L, dim) float32."""
        return torch.cat([scale(images) for scale in self._each()], dim=-1)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, N, dim) -> (B, N) float32: the mean over scales of their mean squared errors."""
        parts = zip(prediction.split(self.widths, -1), target.split(self.widths, -1), strict=True)
        scales = zip(self._each(), parts, strict=True)
        return torch.stack([scale.loss(*part) for scale, part in scales]).mean(0)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, dim) -> (B, 3, k*H, k*W): the strokes of the scale with the smallest cells."""
        return self._each()[-1].picture(values[..., -self.widths[-1] :], images)
