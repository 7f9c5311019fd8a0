"""Differences between rows of a table, from one model of all of its rows: accuracy ~ row + seed.

Rows of a closed table share seeds, images, crops and masks. The residual of the model, pooled over all rows, is the
noise of training; with R rows and S seeds it has (R - 1)(S - 1) degrees of freedom, where a pair alone has S - 1.
The test images are a sample too, and shared: how a difference varies over images, beyond what varies between
seeds anyway, is a second part of its variance (over N). The first part is at least what answers that change from seed
to seed, image by image, leave in a mean of N: with few rows and seeds a residual may be next to nothing. Intervals are
Student's t (Satterthwaite's degrees of freedom); p values are Holm's, over all rows against the reference, or over all
pairs for the best row.

Rows of which only the accuracy is kept (the control at random weights, baselines without training) are compared too.
They share no training with a seed, so its effect does not cancel: what varies is their own difference to the
reference over the seeds, with S - 1 degrees of freedom. Their images count as other images, which errs towards caution.

Legend: R rows, S seeds, N test images.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

_LEVEL = 0.05
_POWER = 0.8
_ROUNDING = 1e-9
"""Below it a difference is what arithmetic leaves of none."""
_MANY_DF = 1e9
"""Student's t is the normal distribution."""
RANKING_SEEDS = 5
"""Seeds below which no row is called the best."""
METHOD = (
    "Differences: accuracy ~ row + seed over all trained rows, residual pooled, plus the chance of the test images "
    "(rows without pre-training: residual of their own difference, as if they had seen other images); 95 % intervals "
    "(Student's t); distinguishable: p < 0.05 by Holm over the rows."
)
Rows = Mapping[str, Mapping[int, np.ndarray]]
"""Label -> seed -> (N,) correctness of the test images, in [0, 1]."""
Accuracies = Mapping[str, Mapping[int, float]]
"""Label -> seed -> share of the test images that is right."""


@dataclass(frozen=True)
class Difference:
    """How much better one row is than another, in fractions of the test images."""

    mean: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    stderr: float
    """Standard error of the mean."""
    num_seeds: int
    """Seeds that both rows have."""
    p: float
    """Two-sided, after Holm where several rows are compared."""
    num_df: float
    """Degrees of freedom of its interval (Satterthwaite)."""
    detectable: float
    """The least true difference that data like these would find four times in five; where several rows are compared
    at Holm's first and hardest step."""

    @property
    def interval(self) -> str:
        """`[+0.8, +3.1]`, in points of accuracy."""
        return f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"

    @property
    def is_distinguishable(self) -> bool:
        """True if the difference is more than chance; never with a single seed, whose chance is not in it."""
        return self.num_seeds > 1 and self.p < _LEVEL


def differences(
    rows: Rows, reference: str, unpaired: Accuracies | None = None
) -> dict[str, Difference]:
    """Label -> row minus reference, of every other row that has a seed in common with it.

    Args:
        unpaired: rows of which only the accuracy is known; they leave the other rows' intervals as they are.
    """
    model = _Model.of(rows)
    others = [label for label in rows if label != reference]
    results = {label: result for label in others if (result := model.pair(rows, label, reference))}
    for label, accuracy in (unpaired or {}).items():
        if result := model.against(rows[reference], accuracy):
            results[label] = result
    return dict(zip(results, _holm(list(results.values())), strict=True))


def contrasts(rows: Rows, weights: Mapping[str, Mapping[str, float]]) -> dict[str, Difference]:
    """Name -> a weighted sum of rows whose weights sum to 0, of each that has a seed common to its rows."""
    model = _Model.of(rows)
    results = {
        name: result
        for name, label_weights in weights.items()
        if (result := model.contrast(rows, label_weights))
    }
    return dict(zip(results, _holm(list(results.values())), strict=True))


def all_pairs(rows: Rows) -> dict[tuple[str, str], Difference]:
    """First minus second of every two rows that have a seed in common, each pair once."""
    model = _Model.of(rows)
    pairs = {(a, b): model.pair(rows, a, b) for a, b in itertools.combinations(rows, 2)}
    results = {pair: result for pair, result in pairs.items() if result}
    return dict(zip(results, _holm(list(results.values())), strict=True))


def best(rows: Rows) -> str | None:
    """The row that is better than every other one, by Holm over all pairs; None if there is none.

    Nor with fewer than `RANKING_SEEDS` seeds, or where a pair of rows has no seed in common.
    """
    pairs = all_pairs(rows)
    num_pairs = len(rows) * (len(rows) - 1) // 2
    if (
        not num_pairs
        or len(pairs) < num_pairs
        or min(d.num_seeds for d in pairs.values()) < RANKING_SEEDS
    ):
        return None
    wins: dict[str, int] = dict.fromkeys(rows, 0)
    for (a, b), result in pairs.items():
        if result.is_distinguishable:
            wins[a if result.mean > 0 else b] += 1
    return next((label for label, num in wins.items() if num == len(rows) - 1), None)


def paired(a: np.ndarray, b: np.ndarray) -> Difference:
    """One run minus another, (N,) correctness each: the chance of the images alone."""
    rows = {"a": {0: a}, "b": {0: b}}
    result = _Model.of(rows).pair(rows, "a", "b")
    assert result is not None
    return result


@dataclass(frozen=True)
class _Model:
    """accuracy ~ row + seed, fitted to all rows, the seeds taken out first (Frisch, Waugh and Lovell)."""

    labels: list[str]
    inverse: np.ndarray
    """(R, R) pseudo-inverse of the rows' part of the normal equations."""
    effects: np.ndarray
    """(R,) of the rows."""
    residual: float
    """Variance that training leaves, per run."""
    num_df: int

    @classmethod
    def of(cls, rows: Rows) -> "_Model":
        """Fitted to rows; raises ValueError where they were evaluated on different numbers of images."""
        if len({len(correct) for of_seed in rows.values() for correct in of_seed.values()}) > 1:
            raise ValueError("rows evaluated on different images cannot be paired")
        labels = list(rows)
        seeds = sorted({seed for of_seed in rows.values() for seed in of_seed})
        accuracy = np.full((len(labels), len(seeds)), np.nan)
        for row, label in enumerate(labels):
            for column, seed in enumerate(seeds):
                if seed in rows[label]:
                    accuracy[row, column] = rows[label][seed].mean()
        is_present = ~np.isnan(accuracy)
        of_seed = is_present.sum(0)
        equations = np.diag(is_present.sum(1)) - (is_present / of_seed) @ is_present.T
        inverse = np.linalg.pinv(equations, hermitian=True)
        effects = inverse @ np.nansum(accuracy - np.nanmean(accuracy, 0), 1)
        residuals = accuracy - effects[:, None]
        residuals -= np.nanmean(residuals, 0)
        num_df = int(is_present.sum()) - len(seeds) - int(np.linalg.matrix_rank(equations))
        residual = float(np.nansum(residuals**2)) / num_df if num_df else 0.0
        return cls(labels, inverse, effects, residual, num_df)

    def pair(self, rows: Rows, a: str, b: str) -> Difference | None:
        """Row a minus row b, p not yet adjusted; None without a common seed."""
        return self.contrast(rows, {a: 1.0, b: -1.0})

    def contrast(self, rows: Rows, weights: Mapping[str, float]) -> Difference | None:
        """A weighted sum of rows, of weights that sum to 0, p not yet adjusted; None without a common seed."""
        common = sorted(set[int].intersection(*(set(rows[label]) for label in weights)))
        if not common:
            return None
        contrast = np.zeros(len(self.effects))
        contrast[[self.labels.index(label) for label in weights]] = list(weights.values())
        of_training = self.residual * float(contrast @ self.inverse @ contrast)
        contrasts = [
            sum(weight * rows[label][seed].astype(np.float32) for label, weight in weights.items())
            for seed in common
        ]
        mean = float(contrast @ self.effects)
        of_answers, of_images = _image_variances(np.stack(contrasts))
        of_training = max(of_training, of_answers)
        return _difference(mean, of_training, of_images, self.num_df, len(common))

    def against(
        self, reference: Mapping[int, np.ndarray], accuracy: Mapping[int, float]
    ) -> Difference | None:
        """A row of which only the accuracy is known, minus the reference; None without a common seed."""
        common = sorted(reference.keys() & accuracy.keys())
        if not common:
            return None
        num_images, num = len(reference[common[0]]), len(common)
        both = np.array([[accuracy[seed], reference[seed].mean()] for seed in common])
        means = both.mean(0)
        of_images = float((means * (1 - means)).sum()) / num_images
        difference = float(means[0] - means[1])
        if num == 1:
            return _difference(difference, 2 * self.residual, of_images, self.num_df, num)
        of_training = float((both[:, 0] - both[:, 1]).var(ddof=1)) / num
        return _difference(difference, of_training, of_images, num - 1, num)


def _image_variances(differences: np.ndarray) -> tuple[float, float]:
    """(S, N) differences -> two variances of their mean: by answers that change from seed to seed, image by image, and
    by the choice of images beyond that.

    Trainings differ in accuracy at least by the first: a residual of few degrees of freedom below it is luck.
    """
    num_seeds, num_images = differences.shape
    of_mean = float(differences.mean(0).var()) / num_images
    if num_seeds == 1:
        return 0.0, of_mean
    of_answers = float(differences.var(0, ddof=1).mean()) / num_seeds / num_images
    return of_answers, max(0.0, of_mean - of_answers)


def _difference(
    mean: float, of_training: float, of_images: float, num_df: int, num_seeds: int
) -> Difference:
    if abs(mean) < _ROUNDING:
        mean = 0.0
    of_training = of_training if of_training > _ROUNDING**2 else 0.0
    variance = of_training + of_images
    stderr = math.sqrt(variance)
    # the variance over thousands of images is as good as known
    effective = num_df * (variance / of_training) ** 2 if of_training > 0 else _MANY_DF
    effective = min(effective, _MANY_DF)
    half = float(special.stdtrit(effective, 1 - _LEVEL / 2)) * stderr
    if stderr > 0:
        p = 2 * float(special.stdtr(effective, -abs(mean) / stderr))
    else:
        p = float(mean == 0)
    ends, detectable = (mean - half, mean + half), _detectable(stderr, effective, 1)
    return Difference(mean, *ends, stderr, num_seeds, p, effective, detectable)


def _detectable(stderr: float, num_df: float, num_compared: int) -> float:
    """True difference that is found with probability `_POWER` as the first of so many by Holm."""
    quantiles = 1 - _LEVEL / 2 / num_compared, _POWER
    return stderr * sum(float(special.stdtrit(num_df, quantile)) for quantile in quantiles)


def _holm(differences: Sequence[Difference]) -> list[Difference]:
    """The same with p values that hold for all of them together."""
    adjusted, running_max = {}, 0.0
    order = sorted(range(len(differences)), key=lambda index: differences[index].p)
    for rank, index in enumerate(order):
        running_max = max(running_max, min(1.0, (len(differences) - rank) * differences[index].p))
        adjusted[index] = running_max
    return [
        replace(d, p=adjusted[i], detectable=_detectable(d.stderr, d.num_df, len(differences)))
        for i, d in enumerate(differences)
    ]
