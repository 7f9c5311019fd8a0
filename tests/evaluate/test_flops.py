"""`flops`: counts equal to those of a real step and of whole models, without memory."""

import itertools

import pytest
import torch

from mim_bench.config import recipe
from mim_bench.config.resolve import load_config
from mim_bench.evaluate import flops, speed
from mim_bench.experiment import cost
from mim_bench.model import masking
from mim_bench.model.mae import MaskedAutoencoder, build_encoder
from mim_bench.targets.build import geometry

CPU = torch.device("cpu")
SHAPES = [
    ("model.mask_tokens=decoder", "mask.sampling=random", "model.decoder_depth=3"),
    ("model.mask_tokens=encoder", "mask.sampling=grid", "mask.ratio=0.75"),
    ("model.mask_tokens=encoder_light", "model.position=learned"),
    ("model.mask_tokens=decoder", "model.decoder_depth=1", "mask.ratio=0.25"),
]


def sized(target, *overrides):
    return cost.sized(load_config(target, "tiny", ["pretrain.batch_size=2", *overrides]))


@pytest.mark.parametrize(
    ("target", "shape"), list(zip(recipe.names("targets"), itertools.cycle(SHAPES), strict=False))
)
def test_step__equals_a_real_step(target, shape, monkeypatch):
    monkeypatch.setattr(speed, "accelerate", lambda *_: None)  # torch does not count oneDNN
    config = sized(target, *shape, "runtime.device=cpu")
    stepper = speed.Stepper(config, CPU)
    with flops.counting() as counter:
        stepper.step()
    # a loss is left out; that of views has products: of 2 x 2 images, both ways, forward and backward
    of_loss = 2 * 2 * (2 * 2**2 * stepper.target.dim) if stepper.target.num_views > 1 else 0
    found = (counter.get_total_flops() - of_loss) / 2
    assert flops.step(config) == found == stepper.flops / 2


@pytest.mark.parametrize("shape", SHAPES)
def test_repeated_blocks__count_as_the_whole_model(shape):
    config = sized("pixel", *shape, "model.depth=3")
    form = geometry(config)
    num_visible = masking.MaskSampler(config.mask, form.grid).num_visible
    model = MaskedAutoencoder(config.model, form, flops.target(config).dim, num_visible=num_visible)
    shuffle, _ = masking.split(torch.rand(1, form.num_patches), num_visible)
    images = torch.zeros(1, form.in_chans, *form.image_size)
    with flops.counting() as counter:
        output = model.predict(images, shuffle, hidden_only=True)
        forward = counter.get_total_flops()
        output.sum().backward()
    found = flops.masked(config)
    assert (found.forward, found.step) == (forward, counter.get_total_flops())
    weights = bytes_of(model.state_dict().values())
    assert found.kept_bytes == weights + bytes_of(model.encoder.state_dict().values())
    trained = bytes_of(p for p in model.parameters() if p.requires_grad)
    assert found.saved_bytes == weights + 2 * trained


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_classifier__counts_attention_and_all_blocks():
    config = sized("pixel")
    form, width, num_blocks = geometry(config), config.model.embed_dim, config.model.depth
    model = build_encoder(config.model, form, seed=0, num_classes=10)
    tokens, patch = form.num_patches + 1, form.patch_size**2 * form.in_chans
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    found = flops.classifier(config.model, form, 10)
    assert found.forward == 2 * (tokens - 1) * patch * width + num_blocks * block + 20 * width
    assert found.kept_bytes == bytes_of(model.state_dict().values())
    assert flops.classifier(config.model, form, 10, freeze=lambda e: None) == found


def test_counting__leaves_random_state_and_targets_usable():
    state = torch.get_rng_state()
    flops._target.cache_clear()
    for target in ("dvae", "hog"):
        flops.step(sized(target))
    assert torch.equal(state, torch.get_rng_state())
    assert speed.Stepper(sized("dvae"), CPU).target_only() is None


def test_target__tells_whether_it_must_be_fitted():
    assert flops.target(sized("dvae")).needs_fit and not flops.target(sized("hog")).needs_fit
