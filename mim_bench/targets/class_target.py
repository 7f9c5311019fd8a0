"""Targets that are class indices: their loss and how a prediction is read.

Legend: B batch, N patches, K indices of a patch, V classes of an index.
"""

import torch.nn.functional as F
from torch import Tensor

from mim_bench.target import Target


class ClassTarget(Target):
    """A target of one or several class indices a patch; the head has V logits for each."""

    num_indices: int = 1
    """K; with 1 the values are (B, L), else (B, L, K)."""

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Logits (B, N, K * V) and indices (B, N) or (B, N, K) -> (B, N) cross-entropy in nats, float32.

        Of several indices the mean.
        """
        if target.ndim == 2:
            return F.cross_entropy(prediction.float().movedim(-1, 1), target, reduction="none")
        logits = prediction.float().unflatten(-1, (self.num_indices, -1))  # (B, N, K, V)
        return F.cross_entropy(logits.movedim(-1, 1), target, reduction="none").mean(-1)

    def decode(self, prediction: Tensor) -> Tensor:
        """(B, N, K * V) logits -> indices (B, N, K), or (B, N) where K is 1."""
        indices = prediction.unflatten(-1, (self.num_indices, -1)).argmax(-1)
        return indices[..., 0] if self.num_indices == 1 else indices
