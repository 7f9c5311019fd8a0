"""A target of somebody's is checked before a step is taken with it, and told which of its methods is wrong."""

import re
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL

from mim_bench.cli.main import main
from mim_bench.config.run import ModelConfig
from mim_bench.errors import UserError
from mim_bench.model.mae import MaskedAutoencoder
from mim_bench.target import Geometry, Target, TargetContext
from mim_bench.targets.check import check_target

CONTEXT = TargetContext(Geometry((16, 16), 4, 1, (0.5,), (0.5,)))
STUDENT = ModelConfig(
    patch_size=4,
    embed_dim=16,
    depth=2,
    num_heads=2,
    decoder_depth=1,
    decoder_dim=16,
    decoder_num_heads=2,
)
IMAGES = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))


class Shares(Target):
    """Soft targets: how much of a patch is dark, middle and bright; loss is the cross-entropy."""

    def __init__(self, params, context):
        super().__init__(params, context)
        self.dim = 3

    def forward(self, images):
        patches = self.geometry.patchify(images)
        return (
            torch.stack([(patches * 3).long().clamp(max=2) == k for k in range(3)], -1)
            .float()
            .mean(2)
        )

    def loss(self, prediction, target):
        return -(target * prediction.log_softmax(-1)).sum(-1)


class Corners(Shares):
    """Four classes of 8 a patch, (B, L, 4) indices, as the downsized patches of ViT B.1.2."""

    def __init__(self, params, context):
        super().__init__(params, context)
        self.dim = 4 * 8

    def forward(self, images):
        patches = self.geometry.patchify(images)
        return (patches[..., [0, 3, 12, 15]] * 8).long().clamp(max=7)

    def loss(self, prediction, target):
        logits = prediction.unflatten(-1, (4, 8)).flatten(0, 2)
        return (
            F.cross_entropy(logits, target.flatten(), reduction="none").view(target.shape).mean(-1)
        )


@pytest.mark.parametrize("cls", [Shares, Corners])
def test_soft_and_several_class_targets__train_on_hidden_patches_alone(cls):
    target = cls(None, CONTEXT)
    check_target(target, IMAGES)
    model = MaskedAutoencoder(STUDENT, CONTEXT.geometry, target.dim)
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(1))
    loss, prediction, mask = model(IMAGES, target, noise)
    assert torch.allclose(loss, target.loss(prediction, target(IMAGES))[mask].mean(), rtol=1e-6)
    loss.backward()
    assert model.encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def wrong(**methods):
    return type("Mine", (Shares,), methods)(None, CONTEXT)


@pytest.mark.parametrize(
    ("methods", "line"),
    [
        ({"forward": lambda self, images: images}, r"Mine\.forward returns torch.float32 of shape"),
        ({"forward": lambda self, images: images.numpy()}, r"Mine\.forward returns ndarray"),
        (
            {"forward": lambda self, images: Shares.forward(self, images) / 0},
            r"Mine\.forward returns nan",
        ),
        (
            {"forward": lambda self, images: Shares.forward(self, images).long().int()},
            r"torch.int32",
        ),
        (
            {"forward": lambda self, images: Shares.forward(self, images).long() + 3},
            r"classes 3 to",
        ),
        ({"loss": lambda self, *a: Shares.loss(self, *a).mean()}, r"Mine\.loss returns shape \(\)"),
        (
            {"loss": lambda self, *a: Shares.loss(self, *a)[:, :1]},
            r"Mine\.loss returns shape \(3, 1\)",
        ),
        (
            {"loss": lambda self, *a: Shares.loss(self, *a).long()},
            r"Mine\.loss returns torch.int64",
        ),
        ({"loss": lambda self, *a: Shares.loss(self, *a) * torch.inf}, r"Mine\.loss returns inf"),
        ({"loss": lambda self, *a: 0.5}, r"Mine\.loss returns float"),
    ],
)
def test_wrong_target__is_refused_with_the_method_at_fault(methods, line):
    with pytest.raises(UserError, match=line):
        check_target(wrong(**methods), IMAGES)


def test_width_of_the_head__is_a_whole_number():
    target = wrong()
    target.dim = 0
    with pytest.raises(UserError, match=r"Mine\.dim is 0"):
        check_target(target, IMAGES)


MINE = """
import torch
from mim_bench.targets.pixel import PixelTarget

class Fails(PixelTarget):
    def forward(self, images):
        return images @ torch.ones(3)

class Later(PixelTarget):
    calls = 0  # the images that are looked at first are fine

    def forward(self, images):
        self.calls += 1
        return super().forward(images) / (self.calls == 1)
"""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Fails", r"my_target\.py:7: RuntimeError"),
        ("Later", r"training images .*Later\.forward returns (nan|inf)"),
    ],
)
def test_faults_in_outside_code__are_shown_where_they_are(
    name, line, tmp_path, monkeypatch, capsys
):
    (tmp_path / "my_target.py").write_text(MINE)
    recipe = f'class = "my_target:{name}"\npaper = "none"\ndescription = "wrong"\n'
    (tmp_path / "mine.toml").write_text(recipe)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_target", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "run",
                "--target",
                str(tmp_path / "mine.toml"),
                *SMALL,
                "--out",
                str(tmp_path / "runs"),
            ]
        )
    err = capsys.readouterr().err
    assert stop.value.code == 2 and re.search(line, err), err
