"""Cross-entropy of the targets that are class indices: one number a patch.

Legend: B batch, N patches, K indices of a patch, V classes of an index.
"""

import torch.nn.functional as F
from torch import Tensor


def class_loss(prediction: Tensor, classes: Tensor) -> Tensor:
    """Logits (B, N, V) and indices (B, N), or logits (B, N, K * V) and (B, N, K) -> (B, N), in nats, float32.

    Of several indices the mean.
    """
    if classes.ndim == 2:
        return F.cross_entropy(prediction.float().movedim(-1, 1), classes, reduction="none")
    logits = prediction.float().unflatten(-1, (classes.shape[2], -1))  # (B, N, K, V)
    return F.cross_entropy(logits.movedim(-1, 1), classes, reduction="none").mean(-1)


def most_likely(prediction: Tensor, num_indices: int) -> Tensor:
    """Logits (B, N, K * V) -> indices (B, N, K), or (B, N) where K is 1."""
    found = prediction.unflatten(-1, (num_indices, -1)).argmax(-1)
    return found[..., 0] if num_indices == 1 else found
