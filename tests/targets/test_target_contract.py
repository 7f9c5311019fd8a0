"""Every recipe in `targets/`: parses, builds, has the right shapes, is finite, sends gradient, draws."""

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch

from mim_bench.config import recipe
from mim_bench.config.run import ModelConfig
from mim_bench.config.target_params import BUILT_IN
from mim_bench.errors import UserError
from mim_bench.model.mae import MaskedAutoencoder
from mim_bench.target import target_class
from mim_bench.targets.build import build_target

TARGETS = recipe.names("targets")
FITS = {
    "dvae": {"fit_epochs": 1, "vocab_size": 8, "width": 4},
    "vq_distilled": {"fit_epochs": 1, "vocab_size": 8, "width": 4},
    "vq_perceptual": {"fit_epochs": 1, "vocab_size": 8, "width": 4},
    "palette": {"num_colors": 16},
    "patch_kmeans": {"num_clusters": 8},
}
CASES = [((28, 28), 4, 1), ((16, 24), 8, 3), ((32, 32), 16, 2)]


class Images:
    """A few training images, for targets that must be fitted."""

    num_images = 64

    def __init__(self, size, channels):
        y = torch.linspace(0, 1, size[0])[None, :, None]
        x = torch.linspace(0, 1, size[1])[None, None, :]
        angle = torch.arange(64)[:, None, None] / 10
        waves = 0.5 + 0.5 * torch.sin(
            20 * (y * torch.cos(angle) + x * torch.sin(angle)) + 3 * angle
        )
        self.images = waves[:, None].expand(-1, channels, -1, -1).contiguous()

    def __iter__(self):
        yield from self.images.split(32)


STUDENT = ModelConfig(
    embed_dim=16, depth=2, num_heads=2, decoder_depth=1, decoder_dim=16, decoder_num_heads=2
)


def student(target):
    """The model that a target is predicted by, at its initial weights."""
    return MaskedAutoencoder(target.context.model, target.geometry, target.dim)


@pytest.fixture(
    scope="module", params=[(name, case) for name in TARGETS for case in CASES], ids=str
)
def built(request):
    name, (size, patch, channels) = request.param
    params = FITS.get(name, {})
    target = build_target(
        name,
        image_size=size,
        patch_size=patch,
        in_chans=channels,
        mean=(0.4,),
        std=(0.3,),
        model=STUDENT.model_copy(update={"patch_size": patch}),
        **params,
    )
    target.begin(student(target))
    images = Images(size, channels)
    if target.needs_fit:
        target.fit(images, seed=0)
    assert not target.needs_fit
    return target, images.images[:4]


def test_forward__has_one_entry_a_patch_and_is_finite(built):
    target, images = built
    values = target(images)
    patches = target.geometry.num_patches
    if values.is_floating_point():
        assert values.shape == (4, patches, target.dim)
        assert torch.isfinite(values).all()
    else:
        assert values.shape[:2] == (4, patches)
        assert values.min() >= 0 and values.max() < target.dim
    assert not values.requires_grad


def test_loss__is_one_number_a_patch_and_sends_gradient(built):
    target, images = built
    prediction = torch.randn(4, target.geometry.num_patches, target.dim, requires_grad=True)
    loss = target.loss(prediction, target(images))
    assert loss.shape == (4, target.geometry.num_patches)
    assert loss.dtype == torch.float32 and (loss >= 0).all()
    loss[1, 2].backward()
    touched = prediction.grad.abs().sum(-1) > 0
    assert touched[1, 2] and touched.sum() == 1


def test_right_prediction__has_a_lower_loss_than_a_wrong_one(built):
    target, images = built
    values = target(images)
    if target.are_probabilities:
        right = values.log()
    elif values.is_floating_point():
        right = values
    else:
        num_indices = values.shape[2] if values.ndim == 3 else 1
        right = 20 * torch.nn.functional.one_hot(values, target.dim // num_indices).float()
        right = right.flatten(2)
    wrong = torch.randn_like(right) * 3
    assert target.loss(right, values).mean() < target.loss(wrong, values).mean()
    if target.are_probabilities:
        torch.testing.assert_close(target.decode(right), values)
    else:
        assert torch.equal(target.decode(right), values)


def test_forward__does_not_depend_on_the_batch(built):
    target, images = built
    whole = target(images)
    assert torch.equal(torch.cat([target(images[i : i + 1]) for i in range(4)]), whole)


def test_picture__is_an_image_in_range(built):
    target, images = built
    picture = target.picture(target(images), images)
    height, width = target.geometry.image_size
    factor = picture.shape[2] // height
    assert picture.shape == (4, 3, factor * height, factor * width) and factor >= 1
    assert picture.min() >= 0 and picture.max() <= 1
    assert picture.std() > 0, "an even grey shows nothing"


def test_picture__says_whether_it_sees_the_true_image(built):
    target, images = built
    values = target(images)
    other = images.flip(-1).roll(5, -2) * 0.7
    sees = not torch.equal(target.picture(values, images), target.picture(values, other))
    assert sees == target.picture_uses_ground_truth


def test_state__moves_into_a_fresh_target(built):
    target, images = built
    fresh = type(target)(target.params, target.context)
    fresh.begin(student(target))
    fresh.load_state_dict(target.state_dict())
    assert not fresh.needs_fit
    assert torch.equal(fresh(images), target(images))


@pytest.mark.parametrize("name", TARGETS)
def test_recipe__shares_its_stem_with_the_file_of_its_class(name):
    found = recipe.load_recipe(name)
    cls = target_class(found.class_path)
    assert (
        Path(inspect.getfile(cls)).stem in TARGETS
    )  # its own, or that of a recipe with other parameters
    assert found.paper and found.description
    assert all(field.description for field in cls.Params.model_fields.values())


def test_feature__is_one_finite_row_an_image(built):
    target, images = built
    feature = target.feature(images)
    assert feature.ndim == 2 and len(feature) == 4 and feature.dtype == torch.float32
    assert torch.isfinite(feature).all() and not feature.requires_grad
    if not target(images).is_floating_point():
        assert torch.allclose(feature.sum(1), torch.ones(4))


def test_fixed_function__is_the_same_at_every_seed(built):
    """A baseline of such a target stands for all seeds in a table."""
    target, images = built
    if not target.Params.depends_on_seed:
        context = dataclasses.replace(target.context, seed=target.context.seed + 1)
        assert torch.equal(type(target)(target.params, context)(images), target(images))


def test_model__trains_on_it_and_refuses_a_loss_of_another_shape(built, monkeypatch):
    target, images = built
    model = student(target)
    loss, prediction, mask = model(images, target, torch.rand(4, target.geometry.num_patches))
    each = target.loss(prediction, target(images))
    assert torch.allclose(loss, each[mask].mean(), rtol=1e-5)
    loss.backward()
    assert model.encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    right = type(target).loss
    for wrong in (
        lambda *a: right(*a).mean(),
        lambda *a: right(*a)[:, :1],
        lambda *a: right(*a)[0],
    ):
        monkeypatch.setattr(type(target), "loss", wrong)
        with pytest.raises(UserError, match=rf"{type(target).__name__}\.loss returns shape"):
            model(images, target)


def test_built_in_parameters__are_those_of_the_classes():
    named = {recipe.load_recipe(name).class_path for name in TARGETS}
    assert named == set(BUILT_IN)
    for class_path, params in BUILT_IN.items():
        cls = target_class(class_path)
        assert cls.Params is params and cls.version == params.version
