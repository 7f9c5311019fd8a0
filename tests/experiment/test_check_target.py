"""The contract of a target, for targets that break it in one point each."""

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL

from mim_bench.cli.main import main
from mim_bench.config.resolve import load_config
from mim_bench.experiment.check_target import check
from mim_bench.target import Target


class Sound(Target):
    """The mean of each patch."""

    def __init__(self, params, context):
        super().__init__(params, context)
        self.dim = 1

    def forward(self, images):
        return self.geometry.patchify(images).mean(-1, keepdim=True)

    def loss(self, prediction, target):
        return (prediction.float() - target).square().mean(-1)


class Random(Sound):
    def forward(self, images):
        return torch.rand(len(images), self.geometry.num_patches, 1)


class OfBatch(Sound):
    def forward(self, images):
        return super().forward(images - images.mean())


class Shared(Sound):
    def loss(self, prediction, target):
        return super().loss(prediction, target) + prediction.mean((1, 2))[:, None]


class Placed(Sound):
    def loss(self, prediction, target):
        return super().loss(prediction, target) * torch.arange(1, prediction.shape[1] + 1)


class Forgets(Sound):
    def begin(self, student):
        self.shift = torch.rand(1)

    def forward(self, images):
        return super().forward(images) + self.shift


class Unsaved(Sound):
    def __init__(self, params, context):
        super().__init__(params, context)
        self.register_buffer("steps", torch.zeros(()))

    def after_step(self, student, step, num_steps):
        self.steps += 1


class Wide(Sound):
    def picture(self, values, images):
        return 3 + torch.zeros_like(images).expand(-1, 3, -1, -1)


class Deep(Sound):
    def feature(self, images):
        return images


class Shapeless(Sound):
    def forward(self, images):
        return F.avg_pool2d(images, 2)


class Broken(Sound):
    def forward(self, images):
        raise ZeroDivisionError("oh")


FAULTS = {
    Random: "the same images give the same values: forward gives other values",
    OfBatch: "an image's values do not depend on its batch: forward gives an image other values",
    Shared: "a patch's loss is its own, and sends gradient: the loss of a patch depends on predictions of others",
    Placed: "does not depend on its place among the hidden ones: the loss of a patch depends on its place",
    Forgets: "its state comes back from its state_dict: a new one with its state_dict gives other values",
    Unsaved: "its state changes in training \\(steps\\) but follows_student is False",
    Wide: "its picture can be drawn: picture returns 3 to 3; allowed: 0 to 1",
    Deep: "it can serve as a fixed feature: feature returns shape",
    Shapeless: "returns values and a loss of the right shape: Shapeless.forward returns torch.float32 of shape",
    Broken: "right shape: ZeroDivisionError: oh \\(.*test_check_target.py:[0-9]+\\)",
}


def recipe_of(cls, folder):
    path = folder / f"{cls.__name__.lower()}.toml"
    path.write_text(f'class = "{__name__}:{cls.__name__}"\ndescription = "d"\npaper = "none"\n')
    return path


def test_check_target__finds_nothing_wrong_with_a_sound_one(tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        main(["check-target", str(recipe_of(Sound, tmp_path))])
    assert done.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "holds to its contract" and all(line[:2] == "ok" for line in lines[:-1])


@pytest.mark.parametrize("name", ["contrastive", "ema_token"])
def test_check_target__passes_targets_that_follow_the_student_or_compare_views(name):
    assert [point for point in check(load_config(name, "tiny", SMALL)) if point.fault] == []


@pytest.mark.parametrize("cls", FAULTS, ids=lambda cls: cls.__name__)
def test_check_target__says_in_which_point_a_target_fails(cls, tmp_path):
    import re

    config = load_config(str(recipe_of(cls, tmp_path)), "tiny", SMALL)
    failed = [f"{point.what}: {point.fault}" for point in check(config) if point.fault]
    assert any(re.search(FAULTS[cls], text) for text in failed), failed


def test_check_target__ends_with_the_users_exit_code(tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        main(["check-target", str(recipe_of(Wide, tmp_path))])
    assert done.value.code == 2
    shown = capsys.readouterr()
    assert "FAIL  its picture can be drawn: picture returns 3 to 3" in shown.out
    assert "breaks its contract in 1 point" in shown.err
