"""The contract of a target, point by point, on real images: what `check-target` prints.

    python -m mim_bench check-target ./mine.toml

Training checks the first of these before its first step (`mim_bench.targets.check`); the others would show only in
numbers that cannot be reproduced, or in a run that does not come back.

Legend: B images, L patches, dim width of the prediction head.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mim_bench.config.run import RunConfig
from mim_bench.data.run_data import complete, open_data
from mim_bench.errors import UserError, user_code_line
from mim_bench.evaluate.context import first_images
from mim_bench.model.mae import MaskedAutoencoder, compute_values
from mim_bench.target import Target
from mim_bench.targets.build import make_target
from mim_bench.targets.check import check_target
from mim_bench.train.fit import fitted_target
from mim_bench.train.pretrain import build_model

_IMAGES = 8


@dataclass(frozen=True)
class Point:
    """One point of the contract."""

    what: str
    fault: str | None
    """Fault in plain words; unset if the property holds."""


@dataclass
class _Case:
    """A target that is ready for use, its student and a few images."""

    config: RunConfig
    target: Target
    student: MaskedAutoencoder
    images: Tensor


def check(config: RunConfig) -> Iterator[Point]:
    """Every point in turn; what cannot go on without an earlier one ends there."""
    try:
        case = _case(config)
        check_target(case.target, case.images)
    except Exception as error:
        yield Point(
            "it builds, fits, and returns values and a loss of the right shape", _text(error)
        )
        return
    yield Point("it builds, fits, and returns values and a loss of the right shape", None)
    for name, holds in _POINTS.items():
        try:
            yield Point(name, holds(case))
        except Exception as error:
            yield Point(name, _text(error))


def _case(config: RunConfig) -> _Case:
    device = torch.device("cpu")
    data = open_data(config, device)
    config = complete(config, data)
    with tempfile.TemporaryDirectory() as out:
        target = fitted_target(config, data, Path(out), device).target
    target.requires_grad_(False)
    student = build_model(config, target.dim)
    target.begin(student)
    images = first_images(config, data.train, _IMAGES, device).float() / 255
    return _Case(config, target, student, images)


def _text(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    line = user_code_line(error)
    return f"{type(error).__name__}: {error}" + (f" ({line})" if line else "")


def _repeats(case: _Case) -> str | None:
    first, second = (compute_values(case.target, case.images) for _ in range(2))
    if not torch.equal(first, second):
        return "forward gives other values for the same images: a run could not be repeated"
    return None


def _alone(case: _Case) -> str | None:
    in_batch = compute_values(case.target, case.images)
    one_by_one = torch.cat([compute_values(case.target, image[None]) for image in case.images])
    is_close = torch.allclose(in_batch.float(), one_by_one.float(), rtol=1e-4, atol=1e-5)
    return None if is_close else "forward gives an image other values when the batch is another"


def _no_gradient(case: _Case) -> str | None:
    return (
        "forward returns values with a gradient" if case.target(case.images).requires_grad else None
    )


def _own_patch(case: _Case) -> str | None:
    values = compute_values(case.target, case.images)
    prediction = torch.randn(*values.shape[:2], case.target.dim, requires_grad=True)
    case.target.loss(prediction, values)[0, 1].backward()
    assert prediction.grad is not None
    touched = prediction.grad.abs().sum(-1) > 0
    if not touched[0, 1]:
        return "the loss of a patch sends no gradient to its prediction"
    return None if touched.sum() == 1 else "the loss of a patch depends on predictions of others"


def _order(case: _Case) -> str | None:
    values = compute_values(case.target, case.images)
    prediction = torch.randn(*values.shape[:2], case.target.dim)
    swapped = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(0))
    loss = case.target.loss(prediction, values)[:, swapped]
    other = case.target.loss(prediction[:, swapped], values[:, swapped])
    is_close = torch.allclose(loss, other, rtol=1e-4, atol=1e-5)
    return None if is_close else "the loss of a patch depends on its place among the hidden ones"


def _state(case: _Case) -> str | None:
    fresh = make_target(case.config)
    fresh.begin(case.student)
    fresh.load_state_dict(case.target.state_dict())
    if fresh.needs_fit:
        return "needs_fit is still true after its state was loaded"
    is_equal = torch.equal(
        compute_values(fresh, case.images), compute_values(case.target, case.images)
    )
    return (
        None if is_equal else "a new one with its state_dict gives other values: state is missing"
    )


def _loss(case: _Case) -> Tensor:
    """Loss of a step as pre-training takes it; mirrored images are the second view of a target that compares views."""
    if case.target.num_views == 1:
        return case.student(case.images, case.target)[0]
    return case.student.compare((case.images, case.images.flip(-1)), case.target)


def _steps(case: _Case) -> str | None:
    before = {name: value.clone() for name, value in case.target.state_dict().items()}
    optimizer = torch.optim.AdamW(case.student.parameters(), lr=1e-3)
    for step in range(1, 4):
        loss = _loss(case)
        if not torch.isfinite(loss):
            return f"the loss is {loss.item()} at step {step}"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        case.target.after_step(case.student, step, 3)
    after = case.target.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    if changed and not case.target.follows_student:
        return f"its state changes in training ({changed[0]}) but follows_student is False: it is not saved"
    return None


def _feature(case: _Case) -> str | None:
    feature = case.target.feature(case.images)
    if feature.ndim != 2 or len(feature) != len(case.images) or not torch.isfinite(feature).all():
        return f"feature returns shape {tuple(feature.shape)}; needed are finite numbers (B, F)"
    return None


def _picture(case: _Case) -> str | None:
    values = compute_values(case.target, case.images)
    picture = case.target.picture(values, case.images)
    height, width = case.target.geometry.image_size
    factor = picture.shape[-2] // height
    if picture.shape != (len(values), 3, factor * height, factor * width) or factor < 1:
        return f"picture returns shape {tuple(picture.shape)}; needed is (B, 3, k * {height}, k * {width})"
    if picture.min() < 0 or picture.max() > 1:
        return f"picture returns {picture.min():.3g} to {picture.max():.3g}; allowed: 0 to 1"
    return None


_POINTS: dict[str, Callable[[_Case], str | None]] = {
    "the same images give the same values": _repeats,
    "an image's values do not depend on its batch": _alone,
    "values carry no gradient": _no_gradient,
    "a patch's loss is its own, and sends gradient": _own_patch,
    "a patch's loss does not depend on its place among the hidden ones": _order,
    "its state comes back from its state_dict": _state,
    "a masked model trains on it, and what changes along is saved": _steps,
    "it can serve as a fixed feature": _feature,
    "its picture can be drawn": _picture,
}
"""Property of a target -> its check, which returns the fault."""
