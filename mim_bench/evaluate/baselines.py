"""Rows that need no pre-training: fixed features under the same probes on the same images (rule 11 of the design).

- `pixels`: the normalised image, all values in a row;
- `pca`: its principal components, as many as the encoder is wide;
- `target`: the values of the target itself (`Target.feature`), which an encoder trained to predict them should beat;
  left out for a target that follows the student.

Probes are logistic regression at its minimum (`linear.penalties`, `linear.tune_fraction`) and kNN. What does not
depend on the run is computed once and kept in `<out>/baselines/`. Images of more than 64 x 64 pixels are averaged down
to that first: a classifier on a million weights a class says nothing more. Likewise a target of more than 4,096 values
an image is averaged over its patches.

Legend: N images, F values of a feature, D encoder width.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mim_bench.config.run import digest
from mim_bench.data.split import Split
from mim_bench.evaluate import knn
from mim_bench.evaluate.cache import Correctness, computed_once
from mim_bench.evaluate.context import EvalContext, ProtocolResult
from mim_bench.evaluate.logistic import standardised, tuned_logistic_regression
from mim_bench.target import Target
from mim_bench.train import distributed
from mim_bench.train.fit import fitted_target

_LARGEST_SIDE = 64
_WIDEST = 4096
"""Values of a feature; a wider target is averaged over its patches."""
_VERSION = 2
_IS_CONVERGED = "is_converged"


def run(context: EvalContext) -> ProtocolResult:
    """Accuracy of each feature under each probe; readouts are `pixels:linear`, `pca:knn`, ..."""
    config, out = context.config, context.folder.parent
    fitted = distributed.main_first(
        lambda: fitted_target(config, context.data, out, context.device)
    )
    target = fitted.target
    computations: dict[str, tuple[object, Callable[[], Correctness]]] = {
        "pixels": (None, lambda: _pixels(context)),
        "pca": (config.model.embed_dim, lambda: _pca(context)),
    }
    if not target.follows_student:
        block = config.target.model_dump(mode="json", exclude={"name"})
        depends_on = [block, config.model.patch_size, fitted.key]
        computations["target"] = (depends_on, lambda: _target(context, target))
    correct: Correctness = {}
    state = []
    for name, (depends_on, compute) in computations.items():
        arrays = computed_once(_path(context, name, depends_on), compute)
        state.append(f"{name} {'converged' if arrays.pop(_IS_CONVERGED) else 'NOT converged'}")
        correct |= {f"{name}:{probe}": values for probe, values in arrays.items()}
    note = f"baselines: features of the clean images; logistic regression: {', '.join(state)}"
    return ProtocolResult(correct, (note,))


def _path(context: EvalContext, name: str, depends_on: object) -> Path:
    config = context.config
    sections = config.model_dump(mode="json", include={"data", "linear", "knn"})
    sections["data"].pop("source")
    key = digest([_VERSION, name, depends_on, sections, context.data.facts.fingerprint])
    return context.folder.parent / "baselines" / f"{name}-{key[:16]}.npz"


def _pixels(context: EvalContext) -> Correctness:
    return _probed(context, *_features(context, _image))


def _pca(context: EvalContext) -> Correctness:
    train, test = _features(context, _image)
    mean = train.mean(0)
    covariance = (train - mean).T @ (train - mean)
    width = min(context.config.model.embed_dim, len(covariance))
    axes = torch.linalg.eigh(covariance)[1][:, -width:]
    return _probed(context, (train - mean) @ axes, (test - mean) @ axes)


def _target(context: EvalContext, target: Target) -> Correctness:
    return _probed(context, *_features(context, lambda _, images: feature_of(target, images)))


def feature_of(target: Target, images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1] -> (B, F): the target's feature, a wide one averaged over patches."""
    feature = target.feature(images)
    num_patches = target.geometry.num_patches
    if feature.shape[1] > _WIDEST and feature.shape[1] % num_patches == 0:
        return feature.unflatten(1, (num_patches, -1)).mean(1)
    return feature


def _image(context: EvalContext, images: Tensor) -> Tensor:
    """(B, C, H, W) in [0, 1] -> (B, F)."""
    if max(images.shape[2:]) > _LARGEST_SIDE:
        height, width = (min(n, _LARGEST_SIDE) for n in images.shape[2:])
        images = F.adaptive_avg_pool2d(images, (height, width))
    return context.features.geometry.normalize(images).flatten(1)


def _features(
    context: EvalContext, function: Callable[[EvalContext, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """(N, F) of the training and of the evaluated images."""

    def of_split(split: Split) -> Tensor:
        index = torch.arange(split.num_images)
        return context.features.over(lambda x: function(context, x.float() / 255), split, index)

    return of_split(context.data.train), of_split(context.test)


def _probed(context: EvalContext, train: Tensor, test: Tensor) -> Correctness:
    """Probe -> which evaluated images are right."""
    config, num_classes = context.config, context.data.num_classes
    labels, truth = context.labels(context.data.train), context.labels(context.test)
    train_features, query = standardised(train, test)
    solution = tuned_logistic_regression(
        train_features, labels, num_classes, config.linear.penalties, config.linear.tune_fraction
    )
    mean = train.mean(0)
    votes = knn.classify(
        train - mean, labels, test - mean, num_classes, config.knn.k, config.knn.temperature
    )
    predictions = {"linear": solution.logits(query).argmax(1), "knn": votes}
    arrays = {probe: (classes == truth).cpu().numpy() for probe, classes in predictions.items()}
    return arrays | {_IS_CONVERGED: np.array(solution.is_converged)}
