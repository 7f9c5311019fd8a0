"""Pixel targets and the regression losses, against the official MAE's numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mim_bench.config.target_params import LossName, NormPixelParams, PixelParams
from mim_bench.errors import UserError
from mim_bench.target import Geometry, Target, TargetContext
from mim_bench.targets.norm_pixel import NormPixelTarget
from mim_bench.targets.pixel import PixelTarget
from mim_bench.targets.regression_loss import regression_loss

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "mae.npz")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OFFICIAL = Geometry((32, 32), 4, 3, *IMAGENET)
ODD = Geometry((12, 20), 4, 2, (0.4, 0.6), (0.2, 0.3))


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def golden_images() -> Tensor:
    return golden("images_u8").permute(0, 3, 1, 2).float() / 255


def images_for(geometry: Geometry, num: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num, geometry.in_chans, *geometry.image_size, generator=generator)


def both(geometry: Geometry) -> list[Target]:
    return [
        PixelTarget(PixelParams(), TargetContext(geometry)),
        NormPixelTarget(NormPixelParams(), TargetContext(geometry)),
    ]


def test_patchify__has_official_order() -> None:
    ramp, patches = golden("ramp"), golden("ramp_patches")
    assert torch.equal(OFFICIAL.patchify(ramp), patches)
    assert torch.equal(OFFICIAL.unpatchify(patches), ramp)


def test_pixel__equals_official_patches() -> None:
    values = PixelTarget(PixelParams(), TargetContext(OFFICIAL))(golden_images())
    torch.testing.assert_close(values, golden("patches"), atol=1e-6, rtol=0)


def test_norm_pixel__equals_official_target() -> None:
    values = NormPixelTarget(NormPixelParams(), TargetContext(OFFICIAL))(golden_images())
    torch.testing.assert_close(values, golden("norm_pix_target"), atol=1e-6, rtol=0)


def test_loss__equals_official_losses() -> None:
    hidden = golden("mask").bool()
    names = ("loss_norm_pix_false", "loss_norm_pix_true")
    for target, name in zip(both(OFFICIAL), names, strict=True):
        loss = target.loss(golden("pred"), target(golden_images()))[hidden].mean()
        torch.testing.assert_close(loss, golden(name), atol=1e-6, rtol=0)


def test_norm_pixel__has_mean_0_and_variance_1_per_patch() -> None:
    values = NormPixelTarget(NormPixelParams(eps=1e-12), TargetContext(ODD))(images_for(ODD))
    assert values.shape == (3, 15, 32)
    torch.testing.assert_close(values.mean(-1), torch.zeros(3, 15), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.var(-1), torch.ones(3, 15), atol=1e-5, rtol=0)


def test_norm_pixel__is_0_on_flat_patches() -> None:
    geometry = Geometry((8, 8), 4, 1, (0.5,), (0.25,))
    values = NormPixelTarget(NormPixelParams(), TargetContext(geometry))(
        torch.full((2, 1, 8, 8), 0.75)
    )
    assert torch.equal(values, torch.zeros(2, 4, 16))


def test_norm_pixel__refuses_patches_of_one_value() -> None:
    with pytest.raises(UserError, match="patch_size"):
        NormPixelTarget(NormPixelParams(), TargetContext(Geometry((4, 4), 1, 1, (0.5,), (0.25,))))


@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1"])
def test_regression_loss__follows_its_formula(name: LossName) -> None:
    difference = torch.tensor([[[0.5, -2.0, 0.0, 3.0]]])
    expected = {"mse": 13.25 / 4, "l1": 5.5 / 4, "smooth_l1": (0.125 + 1.5 + 2.5) / 4}[name]
    loss = regression_loss(name, difference + 1, torch.ones(1, 1, 4))
    torch.testing.assert_close(loss, torch.tensor([[expected]]))


def test_regression_loss__is_float32_under_autocast() -> None:
    prediction, target = images_for(ODD)[:, 0], images_for(ODD)[:, 1]
    expected = regression_loss("mse", prediction.bfloat16().float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = regression_loss("mse", prediction.bfloat16(), target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_regression_loss__refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4, 1\)"):
        regression_loss("mse", torch.zeros(2, 4, 8), torch.zeros(2, 4, 1))


def test_loss__sends_gradient_to_the_prediction_only() -> None:
    for target in both(ODD):
        value = target(images_for(ODD).requires_grad_())
        assert not value.requires_grad
        value.requires_grad_()
        prediction = torch.zeros_like(value, requires_grad=True)
        target.loss(prediction, value).sum().backward()
        assert prediction.grad is not None
        assert prediction.grad.abs().sum() > 0
        assert value.grad is None


def test_picture__of_the_target_is_the_image() -> None:
    for target in both(OFFICIAL):
        images = golden_images()
        drawn = target.picture(target(images), images)
        torch.testing.assert_close(drawn, images, atol=1e-5, rtol=0)


def test_picture__says_where_ground_truth_is_used() -> None:
    values, first, other = torch.randn(3, 15, 32), images_for(ODD), images_for(ODD).flip(0)
    pixel, norm_pixel = both(ODD)
    assert not pixel.picture_uses_ground_truth
    assert torch.equal(pixel.picture(values, first), pixel.picture(values, other))
    assert norm_pixel.picture_uses_ground_truth
    assert not torch.equal(norm_pixel.picture(values, first), norm_pixel.picture(values, other))
    assert pixel.picture(values, first).shape == (3, 3, 12, 20)


def test_params__refuse_unknown_names() -> None:
    with pytest.raises(ValidationError, match="huber"):
        PixelParams.model_validate({"loss": "huber"})
    with pytest.raises(ValidationError, match="esp"):
        NormPixelParams.model_validate({"esp": 1e-3})
