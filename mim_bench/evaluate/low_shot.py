"""Few labels: logistic regression on frozen features from a class-balanced share of the labels.

MSN (Assran et al. 2022, arXiv 2204.07141, section 5) evaluates 1 % of ImageNet's labels this way. Features
are those of the clean images, standardised by the mean and std of all training features (no label is
needed for that); multinomial logistic regression with scikit-learn's `C`, solved by L-BFGS in float64.

Legend: N labelled images, D width, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_bench import rng
from mim_bench.evaluate import features
from mim_bench.evaluate.context import EvalContext, ProtocolResult

_MAX_ITERATIONS = 200


def run(context: EvalContext) -> ProtocolResult:
    """Accuracy of every readout, share of labels and draw."""
    settings, data = context.config.low_shot, context.data
    train, test = context.features.clean(data.train), context.features.clean(context.test)
    labels, truth = context.labels(data.train), context.labels(context.test)
    correct = {}
    for place, name in enumerate(features.READOUTS):
        mean, std = train[:, place].mean(0), train[:, place].std(0).clamp_min(1e-6)
        known, asked = ((x[:, place] - mean) / std for x in (train, test))
        for fraction in settings.fractions:
            for number in range(settings.num_draws):
                chosen = balanced(labels.cpu(), fraction, number).to(labels.device)
                weight, bias = logistic_regression(
                    known[chosen], labels[chosen], data.num_classes, settings.c
                )
                answers = (asked.double() @ weight.T + bias).argmax(dim=1)
                correct[readout(name, fraction, number)] = (answers == truth).cpu().numpy()
    return ProtocolResult(correct, ("low_shot: features of the clean images",))


def readout(name: str, fraction: float, draw_number: int) -> str:
    """Its name among a record's metrics: `last/patch_mean 1% draw 0`."""
    return f"{name} {100 * fraction:g}% draw {draw_number}"


def balanced(labels: Tensor, fraction: float, number: int) -> Tensor:
    """(N,) int64 labels -> indices of equally many images of every class, at least one, of draw `number`."""
    order = rng.permutation(len(labels), seed=number, epoch=0, stream="low shot")
    classes = labels.unique()
    each = max(1, round(fraction * len(labels) / len(classes)))
    return torch.cat([order[labels[order] == label][:each] for label in classes])


def logistic_regression(
    features: Tensor, labels: Tensor, num_classes: int, c: float
) -> tuple[Tensor, Tensor]:
    """Features (N, D), labels (N,) -> weights (K, D) and biases (K,), float64, at the minimum."""
    x = features.double()
    weight = x.new_zeros(num_classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(num_classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        fit = F.cross_entropy(x @ weight.T + bias, labels, reduction="sum")
        value = (c * fit + weight.square().sum() / 2) / len(x)
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(objective)  # pyright: ignore[reportArgumentType]
    return weight.detach(), bias.detach()
