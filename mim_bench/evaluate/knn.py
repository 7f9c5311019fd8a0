"""Weighted k nearest neighbours on frozen features.

Wu et al. 2018 (arXiv 1805.01978), with DINO's k and temperature: features are L2-normalised, the k most
similar training images vote for their class with weight exp(similarity / temperature). Deliberate difference:
the training images' mean is subtracted first. Features of untrained encoders, and pixels, share a large mean, which
would leave all similarities near 1 and flatter whatever removes it.

Legend: N training images, M test images, R readouts, D width, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_bench.evaluate.context import EvalContext, ProtocolResult

_CHUNK = 1000  # test images at once, so that the similarities fit in memory


def run(context: EvalContext) -> ProtocolResult:
    """Accuracy of every readout."""
    config, data = context.config.knn, context.data
    labels = context.labels(data.train)
    truth = context.labels(context.test)
    correct = {}
    for readout in context.features.names:
        train, query = (context.features.of(split, readout) for split in (data.train, context.test))
        mean = train.mean(0)
        votes = classify(
            train - mean, labels, query - mean, data.num_classes, config.k, config.temperature
        )
        correct[readout] = (votes == truth).cpu().numpy()
    return ProtocolResult(correct)


def classify(
    train: Tensor, labels: Tensor, test: Tensor, num_classes: int, k: int, temperature: float
) -> Tensor:
    """Training features (N, D) and labels (N,), test features (M, D) -> predicted classes (M,)."""
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    k = min(k, len(train))
    predictions = []
    for part in test.split(_CHUNK):
        similarity, neighbour = (part @ train.T).topk(k, dim=1)
        weight = torch.exp((similarity - similarity[:, :1]) / temperature)  # scaled: no overflow
        votes = torch.zeros(len(part), num_classes, device=train.device)
        votes.scatter_add_(1, labels[neighbour], weight)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)
