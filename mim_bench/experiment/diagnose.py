"""Properties of a target before any training: how much there is to predict, how far simple predictors get, what it is
worth as a feature, what it costs.

    python -m mim_bench diagnose hog dvae --preset small --data parquet:PATH

On views of the preset's crops and masks that training would not see: R^2 of copying the nearest visible patch and of
ridge regression from visible pixels, over the loss of the mean (`mim_bench.train.gate`). On clean images: mean and
variance, effective dimension, codebook use, how the values vary over the grid, how far a patch's value tells the class
of its image, accuracy of the target as a fixed feature of an image under kNN and logistic regression. Seconds a
target, a fit apart.

Legend: N images, L patches, V width of the values.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from mim_bench.config import recipe
from mim_bench.config.resolve import load_config
from mim_bench.config.run import RunConfig
from mim_bench.data.run_data import Data, complete, open_data
from mim_bench.evaluate import flops, knn
from mim_bench.evaluate.baselines import feature_of
from mim_bench.evaluate.context import first_images
from mim_bench.evaluate.logistic import logistic_regression, standardised
from mim_bench.files import write_text
from mim_bench.model.mae import compute_values
from mim_bench.target import Target
from mim_bench.targets.fitted import perplexity
from mim_bench.train import environment
from mim_bench.train.fit import fitted_target
from mim_bench.train.gate import as_numbers, gate_losses

_TRAIN_IMAGES, _TEST_IMAGES, _ROWS = 4000, 2000, 20_000
_BATCH = 250
_LEAST_IMAGES, _MAX_NUMBERS = 100, 50_000_000
"""Bounds on the statistics of values: images, and numbers in memory."""


@dataclass(frozen=True)
class Diagnosis:
    """Numbers of one target; None where a target has no such number."""

    target: str
    dim: int
    """Width of the prediction head."""
    mean: float
    """Mean of all values; of class indices the mean one-hot entry, one over the number of classes."""
    variance: float
    """Variance around the mean of each dimension, averaged over dimensions."""
    effective_dim: float
    """Participation ratio of the covariance's eigenvalues: the dimensions that carry the variance."""
    perplexity: float | None
    """Equally used classes, of class indices."""
    neighbour_correlation: float
    """Correlation of the values of adjacent patches, averaged over dimensions by their variance."""
    correlation_length: float
    """Patches at which the correlation along the grid falls below 1/e; the grid's side if it does not."""
    high_frequency: float
    """Share of the variance over the grid that lies above half the highest frequency in either direction."""
    class_share: float | None
    """Share of the variance of a patch's values that lies between the image classes; None without labels."""
    copy_r2: float | None
    """Share of the mean's loss that copying the nearest visible patch removes; negative where it adds."""
    ridge_r2: float | None
    """The same of ridge regression from visible pixels and mask: what needs no network."""
    num_images: int
    """Images that it was measured on; a trial has fewer."""
    knn: float
    """Accuracy as a fixed feature under kNN, on 4,000 and 2,000 images at most."""
    linear: float
    """The same under logistic regression."""
    microseconds: float
    """Time of the target for one image of a batch of 250."""
    mflops: float
    """10^6 FLOPs of one image: matrix products, convolutions, attention."""
    state_mb: float
    """Megabytes of what it keeps: codebooks, teachers."""


def diagnose(
    names: Sequence[str],
    preset: str,
    overrides: Sequence[str] = (),
    *,
    out: Path = Path("runs"),
    notify: Callable[[str], None] = print,
) -> Iterator[Diagnosis]:
    """One diagnosis for each target that has values before any training; `out` keeps fits as runs do."""
    for name in names:
        other_targets = set(recipe.names("targets")) - {name}
        settings = [text for text in overrides if text.partition(".")[0] not in other_targets]
        config = load_config(name, preset, settings)
        device = environment.choose_device(config.runtime.device)
        data = open_data(config, device)
        config = complete(config, data)
        target = fitted_target(config, data, out, device).target
        if target.follows_student:
            notify(f"{name}: left out, it has no values before the student does")
            continue
        yield _diagnosis(name, config, data, target, device)


def _diagnosis(
    name: str, config: RunConfig, data: Data, target: Target, device: torch.device
) -> Diagnosis:
    losses = gate_losses(config, data, target, None, device)
    images = {
        split.name: first_images(config, split, num, device).float() / 255
        for split, num in ((data.train, _TRAIN_IMAGES), (data.evaluate, _TEST_IMAGES))
    }
    test = images[data.evaluate.name]
    values = torch.cat([compute_values(target, part) for part in test.split(_BATCH)])
    width = as_numbers(target, values[:1]).numel()  # thousands of classes a patch fill the memory
    numbers = as_numbers(target, values[: max(_LEAST_IMAGES, _MAX_NUMBERS // width)])  # (N, L, V)
    seconds = _seconds(target, test[:_BATCH])
    knn_accuracy, linear = _accuracies(config, data, target, images)

    def r2(predictor: str) -> float | None:
        loss = losses.get(f"{predictor}_loss")
        return None if loss is None else 1 - loss / max(losses["mean_loss"], 1e-12)

    is_class = not values.is_floating_point()
    num_classes = target.dim // (values.shape[2] if values.ndim == 3 else 1)
    return Diagnosis(
        target=Path(name).stem,
        dim=target.dim,
        mean=float(numbers.mean()),
        variance=float(numbers.flatten(0, 1).var(0).mean()),
        effective_dim=_effective_dim(numbers.flatten(0, 1)[:_ROWS]),
        perplexity=perplexity(values, num_classes) if is_class else None,
        neighbour_correlation=_neighbours(numbers, target.geometry.grid),
        correlation_length=_correlation_length(numbers, target.geometry.grid),
        high_frequency=_high_frequency(numbers, target.geometry.grid),
        class_share=_class_share(numbers, data.evaluate.labels),
        copy_r2=r2("copy"),
        ridge_r2=r2("ridge"),
        num_images=len(test),
        knn=knn_accuracy,
        linear=linear,
        microseconds=1e6 * seconds / min(_BATCH, len(test)),
        mflops=flops.target(config).forward / 1e6,
        state_mb=sum(t.numel() * t.element_size() for t in target.state_dict().values()) / 1e6,
    )


def _seconds(target: Target, images: Tensor) -> float:
    """Seconds of the second of two calls."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        float(compute_values(target, images).flatten()[0])  # waits for the device
        times.append(time.perf_counter() - started)
    return times[-1]


def _effective_dim(rows: Tensor) -> float:
    """(N, V) -> (sum of eigenvalues)^2 / sum of their squares, without computing them."""
    centred = rows.double() - rows.double().mean(0)
    gram = centred.T @ centred if centred.shape[1] <= len(centred) else centred @ centred.T
    return float(gram.trace().square() / gram.square().sum().clamp_min(1e-30))


def _neighbours(numbers: Tensor, grid: tuple[int, int], lag: int = 1) -> float:
    """(N, L, V) -> correlation of the values of patches `lag` apart, side by side or one above the other."""
    tiles = (numbers - numbers.mean((0, 1))).unflatten(1, grid)
    variance = tiles.square().mean().clamp_min(1e-30)
    pairs = [(tiles[:, lag:], tiles[:, :-lag]), (tiles[:, :, lag:], tiles[:, :, :-lag])]
    products = [(a * b).flatten() for a, b in pairs if a.numel()]
    return float(torch.cat(products).mean() / variance) if products else float("nan")


def _correlation_length(numbers: Tensor, grid: tuple[int, int]) -> float:
    """(N, L, V) -> lag at which the correlation falls below 1/e, straight between whole lags."""
    before, bound = 1.0, math.exp(-1)
    for lag in range(1, max(grid)):
        correlation = _neighbours(numbers, grid, lag)
        if correlation < bound:
            return lag - 1 + (before - bound) / (before - correlation)
        before = correlation
    return float(max(grid))


def _high_frequency(numbers: Tensor, grid: tuple[int, int]) -> float:
    """(N, L, V) -> share of the power over the grid, its mean apart, above a quarter of a cycle a patch."""
    tiles = numbers.unflatten(1, grid).movedim(-1, 1)
    power = torch.fft.fft2(tiles - tiles.mean((-2, -1), keepdim=True)).abs().square().sum((0, 1))
    y, x = (torch.fft.fftfreq(size).abs() for size in grid)
    is_high = torch.maximum(y[:, None], x[None, :]).to(power.device) > 0.25
    return float(power[is_high].sum() / power.sum().clamp_min(1e-30))


def _class_share(numbers: Tensor, labels: Tensor | None) -> float | None:
    """(N, L, V) and classes of more images -> between-class share of the variance at each place, unbiased."""
    if labels is None:
        return None
    flat = numbers.flatten(1)
    classes, truth = labels[: len(flat)].to(flat.device).unique(return_inverse=True)
    one_hot = torch.nn.functional.one_hot(truth, len(classes)).to(flat.dtype)
    counts = one_hot.sum(0)
    means = (one_hot.T @ flat) / counts[:, None]
    within = (flat - means[truth]).square().sum() / max(1, len(flat) - len(classes))
    total = (flat - flat.mean(0)).square().sum() / max(1, len(flat) - 1)
    return 1 - float(within / total.clamp_min(1e-30))


def _accuracies(
    config: RunConfig, data: Data, target: Target, images: dict[str, Tensor]
) -> tuple[float, float]:
    """kNN and logistic regression on the target as a fixed feature; nan without labels."""
    if data.train.labels is None or data.evaluate.labels is None:
        return float("nan"), float("nan")
    train, test = (
        torch.cat([feature_of(target, part) for part in images[split.name].split(_BATCH)])
        for split in (data.train, data.evaluate)
    )
    labels, truth = (
        split.labels[: len(values)].to(values.device)
        for split, values in ((data.train, train), (data.evaluate, test))
        if split.labels is not None
    )
    mean = train.mean(0)
    votes = knn.classify(
        train - mean, labels, test - mean, data.num_classes, config.knn.k, config.knn.temperature
    )
    if train.shape[1] > len(train):  # the same classifier in the space that the images span
        basis = torch.linalg.svd(train - mean, full_matrices=False)[2].T
        train, test = (train - mean) @ basis, (test - mean) @ basis
    train_features, query = standardised(train, test)
    solution = logistic_regression(train_features, labels, data.num_classes, _PENALTY)
    classes = solution.logits(query).argmax(1)
    return float((votes == truth).float().mean()), float((classes == truth).float().mean())


_PENALTY = 1e-3
"""Inverse penalty c: of the few that `linear` chooses from the one that suits thousands of values and images."""


def write_diagnosis(diagnosis: Diagnosis, preset: str, results: Path) -> Path:
    """Writes `<results>/diagnose/<preset>.csv`, a line a target; those of other targets stay."""
    path = results / "diagnose" / f"{Path(preset).stem}.csv"
    table = pd.DataFrame([asdict(diagnosis)])
    if path.is_file():
        before = pd.read_csv(path)
        table = pd.concat([before[before["target"] != diagnosis.target], table])
    write_text(path, table.to_csv(index=False))
    return path
