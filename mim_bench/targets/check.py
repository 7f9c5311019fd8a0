"""Checks of a target's values on a few images, before any training step is taken with it.

A loss or a value of the wrong shape broadcasts, and a run of it would finish with numbers that mean nothing.

Legend: B batch, L patches, N hidden patches, K class indices a patch, dim width of the prediction head.
"""

import torch
from torch import Tensor

from mim_bench.errors import UserError
from mim_bench.target import Target, check_loss_shape


@torch.no_grad()
def check_target(target: Target, images: Tensor) -> None:
    """Takes a batch of images, shape (B, C, H, W), float in [0, 1], through `forward` and `loss`.

    Raises UserError naming the method at fault and what it must return.
    """
    name = type(target).__name__
    if not isinstance(target.dim, int) or target.dim < 1:
        raise UserError(
            f"{name}.dim is {target.dim!r}; the width of the head is a whole number from 1"
        )
    values = target(images)
    check_values(target, values, len(images))
    num_hidden = target.geometry.num_patches - 1  # not all, so that visible patches cannot slip in
    prediction = torch.zeros(len(images), num_hidden, target.dim, device=images.device)
    loss = target.loss(prediction, values[:, :num_hidden])
    _check_tensor(loss, f"{name}.loss")
    check_loss_shape(target, loss, (len(images), num_hidden))
    if not loss.is_floating_point() or not torch.isfinite(loss).all():
        raise UserError(f"{name}.loss returns {_fault(loss)} for a prediction of zeros")


def check_values(target: Target, values: Tensor, num_images: int) -> None:
    """Raises UserError if values are not what `Target.forward` promises."""
    method, num_patches = f"{type(target).__name__}.forward", target.geometry.num_patches
    _check_tensor(values, method)
    is_class = values.dtype == torch.int64
    if is_class and values.ndim in (2, 3) and values.shape[:2] == (num_images, num_patches):
        if values.min() < 0 or values.max() >= target.dim:
            span = f"{int(values.min())} to {int(values.max())}"
            raise UserError(
                f"{method} returns classes {span}; allowed: 0 to dim - 1 = {target.dim - 1}"
            )
    elif values.is_floating_point() and values.shape == (num_images, num_patches, target.dim):
        if not torch.isfinite(values).all():
            raise UserError(f"{method} returns {_fault(values)}; a target is finite")
    else:
        raise UserError(
            f"{method} returns {values.dtype} of shape {tuple(values.shape)}; needed are floats (B, L, dim) = "
            f"{(num_images, num_patches, target.dim)}, or int64 classes (B, L) or (B, L, K)"
        )


def _check_tensor(values: object, method: str) -> None:
    if not isinstance(values, Tensor):
        raise UserError(f"{method} returns {type(values).__name__}; needed is a tensor")


def _fault(values: Tensor) -> str:
    if not values.is_floating_point():
        return f"{values.dtype}"
    return "nan" if torch.isnan(values).any() else "inf"
