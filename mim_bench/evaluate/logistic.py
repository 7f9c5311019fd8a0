"""Multinomial logistic regression at its minimum, by L-BFGS in float64.

The objective is scikit-learn's, divided by the number of images: c * sum of cross-entropies + half the squared
weights (biases are free). Features are standardised first, by the training images' mean and std. The search runs
in coordinates in which the curvature is about the same in all directions, which takes a tenth of the steps: an
encoder's features are strongly correlated.

Legend: N images, D width, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_bench import rng

_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Logistic:
    """A solution: weights (K, D) and biases (K,), float64."""

    weight: Tensor
    bias: Tensor
    c: float
    """Inverse penalty it was solved with."""
    gradient: float
    """Largest component of the objective's gradient there."""

    @property
    def is_converged(self) -> bool:
        """True if the gradient is below the solver's tolerance, or hardly above it."""
        return self.gradient <= 10 * _TOLERANCE

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, K)."""
        return features.double() @ self.weight.T + self.bias


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D), (M, D) -> the same in units of the first one's std around its mean."""
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    return (train - mean) / std, (test - mean) / std


@dataclass(frozen=True)
class _Rotated:
    """Features along the principal axes of their own second moments."""

    x: Tensor
    """(N, D) float64."""
    axes: Tensor
    """(D, D), a column an axis."""
    moments: Tensor
    """(D,): mean square along each."""

    @classmethod
    def of(cls, features: Tensor) -> "_Rotated":
        x = features.double()
        moments, axes = torch.linalg.eigh(x.T @ x / len(x))
        return cls(x @ axes, axes, moments.clamp_min(0))

    def rows(self, index: Tensor) -> "_Rotated":
        return _Rotated(self.x[index], self.axes, self.moments)


def logistic_regression(features: Tensor, labels: Tensor, num_classes: int, c: float) -> Logistic:
    """Features (N, D) and labels (N,) -> the minimum."""
    return _solve(_Rotated.of(features), labels, num_classes, c, None)


def tuned_logistic_regression(
    features: Tensor, labels: Tensor, num_classes: int, penalties: Sequence[float], fraction: float
) -> Logistic:
    """The same with `c` chosen of `penalties` by the cross-entropy on a slice of the training images.

    From the strongest on, they are tried for as long as that falls.

    Args:
        fraction: share of the images that the choice is made on; the solution is then sought on all.
    """
    rotated = _Rotated.of(features)
    order = rng.permutation(len(labels), seed=0, epoch=0, stream="penalty").to(labels.device)
    num_held = max(1, round(fraction * len(labels)))
    held_out, remaining = order[:num_held], order[num_held:]
    held_features, part, part_labels = (
        features[held_out],
        rotated.rows(remaining),
        labels[remaining],
    )
    best: Logistic | None = None
    least_loss = float("inf")
    for c in sorted(penalties):  # the strongest first: each starts where the last one ended
        solution = _solve(part, part_labels, num_classes, c, best)
        loss = float(F.cross_entropy(solution.logits(held_features), labels[held_out]))
        if best is not None and loss > least_loss:
            break  # weaker ones only fit the rest of the slice better, at many times the steps
        best, least_loss = solution, loss
    assert best is not None  # there is at least one penalty
    return _solve(rotated, labels, num_classes, best.c, best)


def _solve(
    rotated: _Rotated, labels: Tensor, num_classes: int, c: float, initial: Logistic | None
) -> Logistic:
    """L-BFGS over weights in units in which the curvature at 0 is the same along all axes."""
    x, num = rotated.x, len(rotated.x)
    curvature = rotated.moments * (num_classes - 1) / num_classes**2 + 1 / (c * num)
    unit = curvature.rsqrt()
    weight = x.new_zeros(num_classes, x.shape[1])
    bias = x.new_zeros(num_classes)
    if initial:
        weight, bias = (initial.weight @ rotated.axes) / unit, initial.bias.clone()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    solver = torch.optim.LBFGS(
        parameters,
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        rotated_weight = weight * unit
        fit = F.cross_entropy(x @ rotated_weight.T + bias, labels)
        value = fit + rotated_weight.square().sum() / (2 * c * num)
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(objective)  # pyright: ignore[reportArgumentType]
        objective()
    gradient = max(float(p.grad.abs().max()) for p in parameters if p.grad is not None)
    return Logistic((weight.detach() * unit) @ rotated.axes.T, bias.detach(), c, gradient)
