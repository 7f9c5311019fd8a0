"""Few labels: logistic regression on frozen features from a class-balanced share of the labels.

MSN (Assran et al. 2022, arXiv 2204.07141, section 5) evaluates 1 % of ImageNet's labels this way. Features
are those of the clean images, standardised by the mean and std of all training features (no label is
needed for that).

Legend: N labelled images.
"""

import torch
from torch import Tensor

from mim_bench import rng
from mim_bench.evaluate.context import EvalContext, ProtocolResult
from mim_bench.evaluate.logistic import logistic_regression, standardised


def run(context: EvalContext) -> ProtocolResult:
    """Accuracy of every readout, share of labels and draw.

    On the CPU: a few hundred images are too few for a GPU, which the solver would ask thousands of times.
    """
    settings, data = context.config.low_shot, context.data
    labels, truth = (context.labels(split).cpu() for split in (data.train, context.test))
    correct, num_open = {}, 0
    for name in context.features.names:
        features = (context.features.of(split, name).cpu() for split in (data.train, context.test))
        train_features, query = standardised(*features)
        for fraction in settings.fractions:
            for number in range(settings.num_draws):
                chosen = balanced(labels, fraction, number)
                solution = logistic_regression(
                    train_features[chosen], labels[chosen], data.num_classes, settings.c
                )
                num_open += not solution.is_converged
                predictions = solution.logits(query).argmax(dim=1)
                correct[readout(name, fraction, number)] = (predictions == truth).numpy()
    state = f"NOT converged in {num_open} of {len(correct)} draws" if num_open else "converged"
    return ProtocolResult(correct, (f"low_shot: features of the clean images, {state}",))


def readout(name: str, fraction: float, draw_number: int) -> str:
    """Name of a draw's readout among a record's metrics: `last/patch_mean 1% draw 0`."""
    return f"{name} {100 * fraction:g}% draw {draw_number}"


def balanced(labels: Tensor, fraction: float, number: int) -> Tensor:
    """(N,) int64 labels -> indices of equally many images of every class, at least one, of draw `number`."""
    order = rng.permutation(len(labels), seed=number, epoch=0, stream="low shot")
    classes = labels.unique()
    per_class = max(1, round(fraction * len(labels) / len(classes)))
    return torch.cat([order[labels[order] == label][:per_class] for label in classes])
