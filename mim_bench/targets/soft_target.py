"""Targets that are probabilities of classes: their loss and how a prediction is read.

The loss is the divergence of the prediction from the target, which is their cross-entropy less the target's own
entropy: the gradient is the same, and a right prediction has a loss of 0.

Legend: B batch, N patches, K distributions of a patch, V classes of each, dim = K * V.
"""

import torch.nn.functional as F
from torch import Tensor

from mim_bench.target import Target


class SoftTarget(Target):
    """A target of one or several distributions a patch, in a row; the head has V logits for each."""

    are_probabilities = True

    num_distributions: int = 1
    """K."""

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Logits and probabilities (B, N, K * V) -> (B, N) KL divergence in nats, float32; of several the mean."""
        probabilities = target.float().unflatten(-1, (self.num_distributions, -1))
        logits = prediction.float().unflatten(-1, (self.num_distributions, -1))
        return F.kl_div(logits.log_softmax(-1), probabilities, reduction="none").sum(-1).mean(-1)

    def decode(self, prediction: Tensor) -> Tensor:
        """(B, N, K * V) logits -> probabilities of the same shape."""
        return prediction.unflatten(-1, (self.num_distributions, -1)).softmax(-1).flatten(-2)
