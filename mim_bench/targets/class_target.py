"""Targets that are class indices: their loss and how a prediction is read.

Legend: B batch, N patches, K indices of a patch, V classes of an index.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mim_bench.target import Target

PIECE_LOGITS = 2**21
"""Logits whose cross-entropy is taken at a time on a CPU: 8 MB in float32, near what stays in its cache."""


class ClassTarget(Target):
    """A target of one or several class indices a patch; the head has V logits for each."""

    num_indices: int = 1
    """K; with 1 the values are (B, L), else (B, L, K)."""

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Logits (B, N, K * V) and indices (B, N) or (B, N, K) -> (B, N) cross-entropy in nats, float32.

        Of several indices the mean.
        """
        if target.ndim == 2 and prediction.device.type == "cpu":
            # classes one after the other take less time, but other last bits than committed records were trained with
            return F.cross_entropy(prediction.float().movedim(-1, 1), target, reduction="none")
        logits = prediction.unflatten(-1, (self.num_indices, -1)).flatten(0, 2)  # (B * N * K, V)
        losses = _cross_entropy(logits, target.flatten()).unflatten(0, target.shape)
        return losses if target.ndim == 2 else losses.mean(-1)

    def decode(self, prediction: Tensor) -> Tensor:
        """(B, N, K * V) logits -> indices (B, N, K), or (B, N) where K is 1."""
        indices = prediction.unflatten(-1, (self.num_indices, -1)).argmax(-1)
        return indices[..., 0] if self.num_indices == 1 else indices


def _cross_entropy(logits: Tensor, indices: Tensor) -> Tensor:
    """(M, V) and (M,) -> (M,) in float32; on a CPU piece by piece, computed again in the backward pass.

    A patch of 16 indices of 512 classes has 8,192 logits: a batch's are hundreds of MB, read and written many times.
    """
    pieces = max(1, PIECE_LOGITS // logits.shape[-1])
    if logits.device.type != "cpu" or len(logits) <= pieces:
        return _of_piece(logits, indices)
    losses: list[Any] = [
        checkpoint(_of_piece, *piece, use_reentrant=False, preserve_rng_state=False)
        for piece in zip(logits.split(pieces), indices.split(pieces), strict=True)
    ]
    return torch.cat(losses)


def _of_piece(logits: Tensor, indices: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), indices, reduction="none")
