"""The model against the official MAE (tests/golden, mae.*), and what its shapes promise."""

import json
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from official import GEOMETRY, OFFICIAL, official_model, target

from mim_bench.model import masking
from mim_bench.model.mae import MaskedAutoencoder, build_encoder, compute_values
from mim_bench.model.vit import sincos_table
from mim_bench.target import Geometry, Target


@pytest.fixture(scope="module")
def mae(golden):
    return {
        key: torch.from_numpy(value)
        for key, value in golden("mae").items()
        if value.dtype.kind != "U"
    }


@pytest.fixture(scope="module")
def images(mae):
    return mae["images_u8"].permute(0, 3, 1, 2).float() / 255


def test_model__holds_every_official_parameter():
    shapes = json.loads((GOLDEN / "mae.json").read_text())["param_shapes"]
    own = {
        name.removeprefix("encoder."): list(tensor.shape)
        for name, tensor in official_model().state_dict().items()
    }
    assert own == shapes


def test_latent__equals_official(mae, images):
    shuffle, mask = masking.split(mae["noise"], 16)
    visible = shuffle[:, :16]
    latent = official_model().encode(images, visible)
    torch.testing.assert_close(latent, mae["latent"], atol=1e-5, rtol=0)
    assert torch.equal(mask.float(), mae["mask"])
    assert torch.equal(visible, mae["ids_keep"])


@pytest.mark.parametrize(("name", "key"), [("pixel", "false"), ("norm_pixel", "true")])
def test_loss_prediction_gradients__equal_official(mae, images, name, key):
    model = official_model()
    loss, prediction, _ = model(images, target(name), mae["noise"])
    torch.testing.assert_close(prediction, mae["pred"], atol=1e-5, rtol=0)
    torch.testing.assert_close(loss, mae[f"loss_norm_pix_{key}"].float(), atol=1e-6, rtol=0)
    loss.backward()
    norms = {
        f"grad_norm_pix_{key}/{n.removeprefix('encoder.')}": p.grad
        for n, p in model.named_parameters()
    }
    checked = 0
    for full_name, gradient in norms.items():
        if gradient is not None:
            torch.testing.assert_close(
                gradient.norm().double(), mae[full_name].double(), rtol=1e-5, atol=1e-9
            )
            checked += 1
    assert checked == sum(full.startswith(f"grad_norm_pix_{key}/") for full in mae)


def test_position_table__equals_official(golden):
    tables = golden("mae_pos_embed")
    np.testing.assert_allclose(
        sincos_table((8, 8), 48).numpy(), tables["pos_8x8_48_cls"], atol=1e-12
    )
    ours = sincos_table((14, 14), 768)[1:].float().numpy()
    np.testing.assert_allclose(ours, tables["pos_14x14_768_f32"], atol=1e-7)


def test_position_table__tells_every_place_of_a_non_square_grid_apart():
    table = sincos_table((3, 5), 16)[1:]
    assert table.shape == (15, 16)
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 1e-3


@pytest.mark.parametrize("mask_tokens", ["decoder", "encoder", "encoder_light"])
@pytest.mark.parametrize("position", ["sincos", "learned"])
def test_hidden_patches__cannot_reach_the_prediction(mask_tokens, position):
    config = OFFICIAL.model_copy(update={"mask_tokens": mask_tokens, "position": position})
    geometry = Geometry((12, 20), 4, 2, (0.5, 0.5), (0.5, 0.5))
    model = MaskedAutoencoder(config, geometry, 7, num_visible=4)
    images = torch.rand(3, 2, 12, 20)
    shuffle, mask = masking.split(torch.rand(3, 15), 4)
    hidden = geometry.unpatchify(mask[:, :, None].float().expand(-1, -1, 32))
    changed = torch.where(hidden > 0, torch.rand_like(images), images)
    assert torch.equal(model.predict(images, shuffle), model.predict(changed, shuffle))
    shown = torch.where(hidden > 0, images, torch.rand_like(images))
    assert not torch.allclose(model.predict(images, shuffle), model.predict(shown, shuffle))


@pytest.mark.parametrize("mask_tokens", ["decoder", "encoder", "encoder_light"])
def test_every_parameter__gets_a_gradient(mask_tokens):
    config = OFFICIAL.model_copy(update={"mask_tokens": mask_tokens, "position": "learned"})
    model = MaskedAutoencoder(config, GEOMETRY, 48)
    model(torch.rand(2, 3, 32, 32), target("pixel"))[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_initial_weights__are_the_same_for_every_target_but_for_the_head():
    a = MaskedAutoencoder(OFFICIAL, GEOMETRY, 48, seed=3).state_dict()
    torch.rand(5)  # the global generator must not matter
    b = MaskedAutoencoder(OFFICIAL, GEOMETRY, 108, seed=3).state_dict()
    other = MaskedAutoencoder(OFFICIAL, GEOMETRY, 48, seed=4).state_dict()
    shared = [name for name in a if not name.startswith("decoder_pred")]
    assert all(torch.equal(a[name], b[name]) for name in shared)
    assert not torch.equal(
        a["encoder.blocks.0.attn.qkv.weight"], other["encoder.blocks.0.attn.qkv.weight"]
    )


def test_classifier__starts_from_the_same_encoder_as_pretraining():
    encoder = build_encoder(OFFICIAL, GEOMETRY, seed=1).state_dict()
    classifier = build_encoder(OFFICIAL, GEOMETRY, seed=1, num_classes=5).state_dict()
    shared = [name for name in encoder if name in classifier]
    assert len(shared) > 30
    assert all(torch.equal(encoder[name], classifier[name]) for name in shared)


@pytest.mark.parametrize("mask_tokens", ["decoder", "encoder", "encoder_light"])
def test_prediction_of_hidden_patches__is_that_of_all_at_those(mask_tokens):
    config = OFFICIAL.model_copy(update={"mask_tokens": mask_tokens})
    model = MaskedAutoencoder(config, GEOMETRY, 7, num_visible=16)
    images = torch.rand(3, 3, 32, 32)
    shuffle, mask = masking.split(torch.rand(3, GEOMETRY.num_patches), 16)
    everywhere = model.predict(images, shuffle)
    hidden = shuffle[:, 16:]
    torch.testing.assert_close(
        model.predict(images, shuffle, hidden_only=True),
        everywhere.gather(1, hidden[:, :, None].expand(-1, -1, 7)),
    )
    assert mask.gather(1, hidden).all() and not mask.gather(1, shuffle[:, :16]).any()


@pytest.mark.parametrize("precision", ["float32", "model"])
def test_values__are_computed_in_the_precision_that_the_class_states(precision):
    """Exact float32 by default, whatever autocast is in force; a teacher network takes the model's."""
    stated = cast(Target, SimpleNamespace(precision=precision))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        values = compute_values(stated, images, lambda x: x @ x.mT)
    if precision == "float32":
        assert torch.equal(values, images @ images.mT)
    else:
        assert values.dtype == torch.bfloat16
    assert not values.requires_grad
