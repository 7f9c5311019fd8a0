"""Schedules, groups, LARS and the probe against the official numbers (tests/golden)."""

import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN

from mim_bench.config.evaluation import FinetuneConfig
from mim_bench.config.run import ModelConfig
from mim_bench.config.schedule import PretrainConfig
from mim_bench.evaluate.finetune import layer_decay_groups
from mim_bench.evaluate.linear import probe
from mim_bench.model.mae import build_encoder
from mim_bench.target import Geometry
from mim_bench.train.optimizer import LARS, decay_groups, learning_rate

SCHEDULES = json.loads((GOLDEN / "mae_schedules.json").read_text())


@pytest.mark.parametrize("name", SCHEDULES["schedules"])
def test_learning_rate__equals_official(name):
    want = SCHEDULES["schedules"][name]
    schedule = PretrainConfig(
        epochs=want["epochs"],
        warmup_epochs=want["warmup_epochs"],
        batch_size=256,
        blr=want["lr"],
        min_lr=want["min_lr"],
    )
    for epoch, lr, *_ in want["points"]:
        assert learning_rate(schedule, epoch) == pytest.approx(lr, rel=1e-12, abs=1e-18)


def test_learning_rate__is_blr_times_batch_over_256():
    assert PretrainConfig(blr=1.5e-4, batch_size=4096).lr == pytest.approx(2.4e-3)


@pytest.mark.parametrize("decay", ["0.65", "0.75"])
def test_layer_decay__equals_official(decay):
    want = SCHEDULES["layer_decay"][f"global_pool_decay_{decay}"]["parameters"]
    model = build_encoder(
        ModelConfig(), Geometry((224, 224), 16, 3, (0.5,) * 3, (0.5,) * 3), seed=0, num_classes=10
    )
    model.pos_embed.requires_grad_(True)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = layer_decay_groups(model, FinetuneConfig(layer_decay=float(decay)))
    got = {names[id(p)]: group for group in groups for p in group["params"]}
    assert set(got) == set(want)
    for name, facts in want.items():
        assert got[name]["lr_scale"] == pytest.approx(facts["lr_scale"], rel=1e-12)
        assert got[name]["weight_decay"] == facts["weight_decay"]


def test_decay_groups__equal_official_pretraining():
    groups = SCHEDULES["pretrain_weight_decay"]["groups"]
    want = {name: group["weight_decay"] for group in groups for name in group["parameters"]}
    shapes = json.loads((GOLDEN / "mae.json").read_text())["param_shapes"]
    parameters = {
        name: torch.nn.Parameter(torch.zeros(shapes.get(name, [1])), requires_grad=name in want)
        for name in shapes
    }
    missing = set(want) - set(shapes)
    names = {id(p): name for name, p in parameters.items()}
    got = {
        names[id(p)]: group["weight_decay"]
        for group in decay_groups(parameters.items(), 0.05)
        for p in group["params"]
    }
    assert got == {name: decay for name, decay in want.items() if name not in missing}
    assert len(got) > 30


@pytest.mark.parametrize(("key", "decay"), [("wd0", 0.0), ("wd01", 0.1)])
def test_lars__equals_official(golden, key, decay):
    lars = golden("lars")
    names = [name.removeprefix("init/") for name in lars if name.startswith("init/")]
    parameters = {
        name: torch.nn.Parameter(torch.from_numpy(lars[f"init/{name}"].copy())) for name in names
    }
    optimizer = LARS(
        parameters.values(), 1.0, decay, float(lars["momentum"]), float(lars["trust_coefficient"])
    )
    for step, lr in enumerate(lars["lrs"], start=1):
        for name, parameter in parameters.items():
            gradient = lars.get(f"grad{step}/{name}")
            parameter.grad = None if gradient is None else torch.from_numpy(gradient.copy())
        optimizer.param_groups[0]["lr"] = float(lr)
        optimizer.step()
        for name, parameter in parameters.items():
            want = lars[f"{key}/step{step}/{name}"]
            np.testing.assert_allclose(parameter.detach().numpy(), want, atol=1e-5)
    for name, parameter in parameters.items():
        if f"{key}/mu_after_3/{name}" in lars:
            mu = optimizer.state[parameter]["mu"].numpy()
            np.testing.assert_allclose(mu, lars[f"{key}/mu_after_3/{name}"], atol=1e-5)


@pytest.mark.parametrize("kind", ["cls", "global_pool"])
def test_probe__equals_official_for_one_step(golden, kind):
    want = golden("probe")
    head = probe(48, 10)
    head[1].load_state_dict(
        {
            "weight": torch.from_numpy(want["head_weight"]),
            "bias": torch.from_numpy(want["head_bias"]),
        }
    )
    features, labels = torch.from_numpy(want[f"{kind}_features"]), torch.from_numpy(want["labels"])
    logits = head(features)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    np.testing.assert_allclose(logits.detach(), want[f"{kind}_probe_train_logits"], atol=2e-5)
    np.testing.assert_allclose(loss.item(), want[f"{kind}_probe_loss"], atol=1e-5)
    loss.backward()
    LARS(head.parameters(), 6.4).step()
    for name, tensor in (("weight", head[1].weight), ("bias", head[1].bias)):
        np.testing.assert_allclose(tensor.detach(), want[f"{kind}_probe_{name}_after_1"], atol=1e-5)
    for name in ("running_mean", "running_var"):
        np.testing.assert_allclose(
            getattr(head[0], name), want[f"{kind}_probe_{name}_after_1"], atol=1e-5
        )
    head.eval()
    np.testing.assert_allclose(
        head(features).detach(), want[f"{kind}_probe_eval_logits_after_1"], atol=2e-5
    )
