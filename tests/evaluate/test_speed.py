"""`speed`: figures that agree with what can be counted by hand, and targets that are cheap."""

import pytest
import torch

from mim_bench.config.resolve import load_config
from mim_bench.errors import UserError
from mim_bench.evaluate import speed

SIZED = ("data.image_size=16", "data.in_chans=1", "pretrain.batch_size=4", "runtime.device=cpu")


@pytest.fixture(scope="module")
def timed():
    return speed.time_targets(["pixel", "hog", "dvae"], "tiny", SIZED, steps=3)


def test_flops__equal_a_count_by_hand(timed):
    speeds, _, config = timed
    dim, deep = config.model.embed_dim, config.model.decoder_dim
    batch, patches, visible, pixels = 4, 4, 2, 64  # 16 px in patches of 8; tiny hides half

    def blocks(depth, tokens, width):
        attention = 2 * 2 * tokens * tokens * width
        return depth * (2 * tokens * 12 * width * width + attention)

    forward = (
        2 * visible * pixels * dim
        + blocks(config.model.depth, visible + 1, dim)
        + 2 * (visible + 1) * dim * deep
        + blocks(config.model.decoder_depth, patches + 1, deep)
        + 2 * patches * deep * pixels
    )
    # backward costs two forwards, less the gradient of the patches, which nobody needs
    assert speeds[0].flops == pytest.approx(3 * batch * forward, rel=0.03)


def test_speeds__are_consistent(timed):
    speeds, peak, _ = timed
    assert [found.target for found in speeds] == ["pixel", "hog", "dvae"]
    for found in speeds:
        assert found.images_per_s == pytest.approx(4 / found.step_s)
        assert 0 < found.target_share < 1
        assert found.peak_share == pytest.approx(found.flops / found.step_s / peak)
    assert speeds[2].target_share > speeds[0].target_share


def test_preset_without_its_data__is_timed_by_its_sizes():
    config = speed.sized(load_config("pixel", "imagenet"))
    assert config.data.image_size == (224, 224) and config.data.in_chans == 3


def test_timed_step__moves_a_teacher_as_training_does():
    """Else the targets that follow the student would look cheaper than they are."""
    stepper = speed.Stepper(
        speed.sized(load_config("ema_feature", "tiny", SIZED)), torch.device("cpu")
    )
    before = [parameter.clone() for parameter in stepper.target.parameters()]
    stepper.step()
    after = list(stepper.target.parameters())
    assert before and not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_unknown_target__is_refused_before_anything_istimed():
    with pytest.raises(UserError, match="nearest: pixel"):
        speed.time_targets(["pixels"], "tiny", SIZED, steps=1)
