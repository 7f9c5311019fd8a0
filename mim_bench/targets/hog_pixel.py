"""A weighted sum of targets: a shared trunk, a linear head for each, their losses added.

MaskFeat (Wei et al. 2022, section 5) finds pixels and HOG together worse than HOG; ExPLoRe adds pixels to features
with weight 0.01, which costs kNN and helps dense transfer. One head of the width of all parts is the same as one head
for each.

Legend: B batch, L patches, dim the sum of the parts' widths.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mim_bench.config.resolve import explain
from mim_bench.config.target_params import BUILT_IN, SumParams
from mim_bench.errors import UserError, suggest
from mim_bench.target import Target, TargetContext, target_class

_PARTS = {path.rpartition(".")[2].partition(":")[0]: path for path in BUILT_IN}
"""Stem of a class's file -> its path."""


class SumTarget(Target):
    """The values of several regression targets side by side, (B, L, dim) float32."""

    Params = SumParams
    version = SumParams.version

    def __init__(self, params: SumParams, context: TargetContext) -> None:
        super().__init__(params, context)
        if unknown := sorted(set(params.settings) - set(params.weights)):
            raise UserError(
                f"settings: '{unknown[0]}' is no part; {suggest(unknown[0], params.weights)}"
            )
        self.parts = nn.ModuleList(
            _part(name, params.settings.get(name, {}), context) for name in params.weights
        )
        self.widths = [part.dim for part in self._each()]
        self.dim = sum(self.widths)

    def _each(self) -> list[Target]:
        return [cast(Target, part) for part in self.parts]

    @property
    def picture_uses_ground_truth(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._each()[0].picture_uses_ground_truth

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L, dim) float32, part by part."""
        return torch.cat([part(images) for part in self._each()], dim=-1)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, N, dim) -> (B, N) float32: the weighted sum of the parts' losses."""
        parts = zip(prediction.split(self.widths, -1), target.split(self.widths, -1), strict=True)
        losses = [part.loss(*pair) for part, pair in zip(self._each(), parts, strict=True)]
        weights = self.params.weights.values()
        return torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum(0)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, dim) -> (B, 3, k*H, k*W): that of the first part."""
        return self._each()[0].picture(values[..., : self.widths[0]], images)


def _part(name: str, params: Mapping[str, Any], context: TargetContext) -> Target:
    if name not in _PARTS:
        raise UserError(f"weights: unknown target '{name}'; {suggest(name, _PARTS)}")
    cls = target_class(_PARTS[name])
    try:
        part = cls(cls.Params.model_validate(params), context)
    except ValidationError as error:
        raise UserError(f"settings.{name}.{explain(error)}") from None
    if part.needs_fit or part.follows_student or isinstance(part, SumTarget):
        raise UserError(
            f"weights: '{name}' cannot be a part: it is fitted, follows the student, or is a sum"
        )
    return part
