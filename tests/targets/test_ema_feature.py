"""The teacher of `ema_feature`: its rate, what it predicts, resume, ranks, and reopening."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from mim_bench.config.run import ModelConfig
from mim_bench.evaluate.reconstruction import reopen
from mim_bench.experiment.run import execute
from mim_bench.model.mae import MaskedAutoencoder
from mim_bench.targets.build import build_target

STUDENT = ModelConfig(
    patch_size=4, embed_dim=16, depth=3, num_heads=2, decoder_depth=1, decoder_dim=16,
    decoder_num_heads=2,
)  # fmt: skip
RATES = {"tau_start": 0.9, "tau_end": 0.99, "tau_fraction": 0.5}


@pytest.fixture
def pair():
    target = build_target(
        "ema_feature", image_size=16, patch_size=4, model=STUDENT, num_blocks=2, **RATES
    )
    model = MaskedAutoencoder(STUDENT, target.geometry, target.dim)
    target.begin(model)
    return target, model


def test_teacher__is_the_moving_average_of_the_student(pair):
    target, model = pair
    expected = copy.deepcopy(model.encoder.state_dict())
    for step, tau in ((1, 0.9 + 0.09 * 0.2), (5, 0.99), (9, 0.99)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        target.after_step(model, step, 10)
        for name, value in model.encoder.state_dict().items():
            expected[name] = tau * expected[name] + (1 - tau) * value
    for name, value in target.teacher.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in target.parameters())


def test_values__are_the_mean_of_normalised_top_blocks(pair):
    target, _ = pair
    images, outputs = torch.rand(2, 3, 16, 16), []
    for block in target.teacher.blocks[1:]:
        block.register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
    values = target(images)
    expected = sum(F.layer_norm(each[:, 1:], (16,)) for each in outputs) / 2
    torch.testing.assert_close(values, expected)


def test_loss__is_smooth_l1(pair):
    target, _ = pair
    difference = torch.tensor([0.5, 3.0]).repeat(8)
    loss = target.loss(difference.view(1, 1, 16), torch.zeros(1, 1, 16))
    torch.testing.assert_close(loss, torch.tensor([[(0.5**2 / 4 + (3 - 1)) / 2]]))


def test_finished_run__reopens_with_its_teacher(small, tmp_path):
    config = small("ema_feature", "evaluate.protocols=[]")
    folder = execute(config, out=tmp_path).folder
    saved = load_file(folder / "target.safetensors")
    encoder = load_file(folder / "encoder.safetensors")
    name = "blocks.0.attn.qkv.weight"
    assert not torch.equal(saved[f"teacher.{name}"], encoder[name])
    assert (folder / "picture.png").is_file()
    first = reopen(folder, torch.device("cpu"))[1][0]
    again = reopen(folder, torch.device("cpu"))[1][0]
    assert torch.equal(first.target, again.target) and first.target.std() > 0.05
    untrained = build_target(
        "ema_feature", image_size=32, patch_size=8, in_chans=1, mean=(0.3,), std=(0.3,),
        model=config.model,
    )  # fmt: skip
    untrained.begin(MaskedAutoencoder(config.model, untrained.geometry, untrained.dim))
    assert not torch.equal(saved[f"teacher.{name}"], untrained.teacher.state_dict()[name])
