"""The dvae target: words of a tokenizer, its fit, and what it refuses."""

import logging
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from mim_bench.config.target_params import DvaeParams
from mim_bench.errors import UserError
from mim_bench.target import Geometry, TargetContext
from mim_bench.targets.dvae import DvaeTarget, factor_for, palette
from mim_bench.targets.fitted import MIN_PERPLEXITY, check_use
from mim_bench.targets.tokenizer import training
from mim_bench.targets.tokenizer.encoder import Block
from mim_bench.targets.tokenizer.lanczos import resize

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = str(GOLDEN / "dalle_weights.safetensors")
TINY: dict[str, Any] = {"vocab_size": 16, "width": 4, "fit_epochs": 2, "fit_batch_size": 8}


class Shapes:
    """Training images: rectangles of random place, size and grey, in batches of 5."""

    def __init__(self, num_images: int = 32, size: int = 16, chans: int = 1) -> None:
        self.num_images = num_images
        rng = np.random.default_rng(0)
        images = np.zeros((num_images, chans, size, size), dtype=np.float32)
        for image in images:
            for _ in range(3):
                top, left = rng.integers(0, size - 4, size=2)
                height, width = rng.integers(3, size // 2 + 1, size=2)
                image[:, top : top + height, left : left + width] = rng.random((chans, 1, 1))
        self.images = torch.from_numpy(images)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.images.split(5)


def _geometry(size: int = 16, patch: int = 4, chans: int = 1) -> Geometry:
    return Geometry((size, size), patch, chans, (0.5,) * chans, (0.5,) * chans)


def _target(geometry: Geometry | None = None, **params: Any) -> DvaeTarget:
    return DvaeTarget(DvaeParams(**(TINY | params)), TargetContext(geometry or _geometry()))


@pytest.fixture(scope="module")
def fitted() -> tuple[DvaeTarget, dict[str, float]]:
    target = _target()
    return target, target.fit(Shapes(), seed=3)


def test_dvae__a_word_for_each_patch(fitted: tuple[DvaeTarget, dict[str, float]]) -> None:
    target, report = fitted
    tokens = target(Shapes().images)
    assert tokens.shape == (32, 16)
    assert tokens.dtype == torch.int64
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < target.dim == 16
    assert report["codebook_use"] == len(tokens.unique()) / 16
    assert 1 <= report["codebook_perplexity"] <= 16 * report["codebook_use"] + 1e-9
    assert report["fit_seconds"] > 0


@pytest.mark.parametrize(
    "params",
    [
        {"reconstruction": "l2"},
        {"reconstruction": "logit_laplace", "residual_gain": None, "fit_lr": 1e-2},
    ],
    ids=["l2", "logit_laplace"],
)
def test_dvae__fit_keeps_more_than_the_mean_image(params: dict[str, Any]) -> None:
    images = Shapes(64)
    report = _target(width=8, fit_epochs=25, **params).fit(images, seed=0)
    assert report["reconstruction_mse"] < 0.8 * float(images.images.var())


def test_dvae__fit_is_a_function_of_the_seed(fitted: tuple[DvaeTarget, dict[str, float]]) -> None:
    again, other = _target(), _target()
    torch.manual_seed(99)
    again.fit(Shapes(), seed=3)
    after_fit = torch.rand(3)
    other.fit(Shapes(), seed=4)
    state = fitted[0].state_dict()
    assert all(torch.equal(state[name], value) for name, value in again.state_dict().items())
    assert not torch.equal(
        state["encoder.blocks.input.w"], other.state_dict()["encoder.blocks.input.w"]
    )
    torch.manual_seed(99)
    assert torch.equal(after_fit, torch.rand(3)), "fit must not move the caller's generator"


def test_dvae__building_draws_no_random_numbers() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    _target()
    assert torch.equal(torch.rand(3), expected)


def test_dvae__a_loaded_state_gives_the_same_words(
    fitted: tuple[DvaeTarget, dict[str, float]],
) -> None:
    target = fitted[0]
    fresh = _target()
    assert fresh.needs_fit
    with pytest.raises(RuntimeError, match="fit"):
        fresh(Shapes().images)
    fresh.load_state_dict(target.state_dict())
    assert not fresh.needs_fit
    assert torch.equal(fresh(Shapes().images), target(Shapes().images))


def test_dvae__stays_frozen(fitted: tuple[DvaeTarget, dict[str, float]]) -> None:
    target = fitted[0]
    assert not target.train().training
    assert not any(module.training for module in target.modules())
    assert not any(parameter.requires_grad for parameter in target.parameters())


def test_dvae__words_do_not_depend_on_the_batch(
    fitted: tuple[DvaeTarget, dict[str, float]],
) -> None:
    target, images = fitted[0], Shapes().images
    whole = target(images)
    for size in (1, 7, 16):
        assert torch.equal(torch.cat([target(part) for part in images.split(size)]), whole)


def test_dvae__autocast_changes_no_word(fitted: tuple[DvaeTarget, dict[str, float]]) -> None:
    images = Shapes().images
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fitted[0](images), fitted[0](images))
        words = fitted[0](images)
    assert torch.equal(words, fitted[0](images))


def test_dvae__loss_is_the_cross_entropy_of_each_patch() -> None:
    target = _target()
    prediction = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    words = target.decode(prediction)
    loss = target.loss(prediction.bfloat16(), words)
    assert loss.shape == (2, 16)
    assert loss.dtype == torch.float32
    expected = -prediction.bfloat16().float().log_softmax(-1).max(-1).values
    torch.testing.assert_close(loss, expected)


def test_dvae__picture_decodes_the_words(fitted: tuple[DvaeTarget, dict[str, float]]) -> None:
    target, images = fitted[0], Shapes().images[:3]
    picture = target.picture(target(images), images)
    assert picture.shape == (3, 3, 16, 16)
    assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
    blank = torch.zeros_like(images)
    assert torch.equal(picture, target.picture(target(images), blank)), "it may not see the images"


def test_gate_of_tokenizers__is_a_quarter_of_the_vocabulary() -> None:
    assert MIN_PERPLEXITY == 0.25


@pytest.mark.parametrize(("use", "refused"), [(63.9, True), (64.0, False), (math.nan, True)])
def test_gate__does_not_ask_how_many_words_are_in_use_at_all(monkeypatch, use, refused) -> None:
    monkeypatch.setattr("mim_bench.targets.fitted.MIN_PERPLEXITY", MIN_PERPLEXITY)
    with pytest.raises(UserError, match="vocab_size 256") if refused else nullcontext():
        check_use(use, "vocab_size", 256, "lower vocab_size")


def test_dvae__below_the_gate_is_an_error_that_names_the_remedy(monkeypatch) -> None:
    monkeypatch.setattr("mim_bench.targets.fitted.MIN_PERPLEXITY", 0.25)
    target = _target(vocab_size=512)
    images = Shapes(8)
    images.images.zero_()
    with pytest.raises(UserError, match=r"below the gate: .* vocab_size 512 .* raise fit_epochs"):
        target.fit(images, seed=0)
    assert target.needs_fit


def test_dvae__without_a_gain_the_published_one() -> None:
    target = _target(residual_gain=None, blocks_per_group=2)
    blocks = [part for part in target.modules() if isinstance(part, Block)]
    assert len(blocks) == 2 * 3 * 2
    assert {block.gain for block in blocks} == {1 / 36}


@pytest.mark.parametrize(
    ("patch", "factor", "token_size"), [(1, 1, 48), (2, 2, 48), (3, 2, 32), (4, 4, 48), (16, 8, 24)]
)
def test_dvae__one_word_a_patch_at_any_patch_size(patch: int, factor: int, token_size: int) -> None:
    target = _target(_geometry(48, patch, 3))
    assert target.encoder.factor == factor == factor_for(patch)
    assert target.token_image_size == (token_size, token_size)
    assert target.logits(torch.rand(1, 3, 48, 48)).shape[2:] == (48 // patch, 48 // patch)


def test_dvae__oblong_images_of_two_channels() -> None:
    geometry = Geometry((16, 24), 8, 2, (0.5, 0.5), (0.5, 0.5))
    target = _target(geometry)
    target.fitted.fill_(True)
    images = torch.rand(2, 2, 16, 24)
    words = target(images)
    assert words.shape == (2, 6)
    assert target.picture(words, images).shape == (2, 3, 16, 24)


def test_dvae__published_weights_give_the_official_words() -> None:
    with np.load(GOLDEN / "dalle_encoder.npz") as file:
        images = torch.from_numpy(file["b32_u8"]).movedim(-1, 1).float() / 255
        expected = torch.from_numpy(file["b32_tokens"]).flatten(1)
    target = DvaeTarget(DvaeParams(weights=WEIGHTS), TargetContext(_geometry(32, 8, 3)))
    assert not target.needs_fit
    assert target.dim == 512
    assert target.weights_sha256 is not None
    assert len(target.weights_sha256) == 64
    assert torch.equal(target(images), expected)
    larger = DvaeTarget(DvaeParams(weights=WEIGHTS), TargetContext(_geometry(64, 16, 3)))
    assert larger(torch.rand(1, 3, 64, 64)).shape == (1, 16)
    picture = target.picture(expected, images)
    assert picture.shape == (4, 3, 32, 32)
    assert len(picture.permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0)) == len(expected.unique())


def test_dvae__published_weights_take_one_channel_and_no_other_count() -> None:
    grey = DvaeTarget(DvaeParams(weights=WEIGHTS), TargetContext(_geometry(32, 8, 1)))
    colour = DvaeTarget(DvaeParams(weights=WEIGHTS), TargetContext(_geometry(32, 8, 3)))
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(grey(image), colour(image.expand(-1, 3, -1, -1)))
    with pytest.raises(UserError, match="in_chans is 4.*takes 3"):
        DvaeTarget(DvaeParams(weights=WEIGHTS), TargetContext(_geometry(32, 8, 4)))


def test_dvae__says_what_weights_leave_without_effect(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        DvaeTarget(DvaeParams(weights=WEIGHTS, vocab_size=99), TargetContext(_geometry(32, 8, 3)))
    assert "without effect: vocab_size" in caplog.text


def test_dvae__refuses_images_of_another_shape(fitted: tuple[DvaeTarget, dict[str, float]]) -> None:
    with pytest.raises(UserError, match=r"\(2, 1, 20, 16\); allowed: \(B, 1, 16, 16\)"):
        fitted[0](torch.zeros(2, 1, 20, 16))


def test_dvae__refuses_a_temperature_that_rises() -> None:
    with pytest.raises(ValidationError, match="temperature_end is 2.0; allowed: at most"):
        DvaeParams(temperature_end=2.0)


def test_palette__distinct_and_stable() -> None:
    colours = palette(8192)
    assert len(colours.unique(dim=0)) == 8192
    assert torch.equal(palette(100), colours[:100])
    assert 0 <= float(colours.min()) <= float(colours.max()) < 1


@pytest.mark.parametrize(("before", "after"), [((32, 48), (16, 18)), ((10, 10), (24, 7))])
def test_resize__equals_pillows_lanczos(before: tuple[int, int], after: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random(before, dtype=np.float32) * 0.4 + 0.3
    size = (after[1], after[0])
    expected = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    ours = resize(torch.from_numpy(image)[None, None], after)[0, 0]
    torch.testing.assert_close(ours, torch.from_numpy(expected.copy()), atol=1e-6, rtol=0)


def test_rebatch__keeps_every_image_in_order() -> None:
    images = torch.arange(23)
    batches = list(training.rebatch(images.split(5), 8))
    assert [len(batch) for batch in batches] == [8, 8, 7]
    assert torch.equal(torch.cat(batches), images)


def test_schedule__ends_where_it_should() -> None:
    schedule = training.Schedule(100, 1e-3, 1.0, 0.1, 0.5, 2.0, 1.0, 0.2)
    assert schedule.temperature_at(0) == 1.0
    assert schedule.temperature_at(50) == pytest.approx(0.1)
    assert schedule.temperature_at(99) == pytest.approx(0.1)
    assert schedule.warmup_at(0) == 0
    assert schedule.warmup_at(20) == schedule.warmup_at(99) == 1
    assert schedule.lr_at(100) == pytest.approx(1e-5)


def test_kl_to_uniform__zero_for_uniform_and_log_v_for_certain() -> None:
    flat = torch.zeros(1, 8, 2, 2)
    certain = flat.clone()
    certain[:, 3] = 100
    assert float(training.kl_to_uniform(flat)) == pytest.approx(0, abs=1e-6)
    assert float(training.kl_to_uniform(certain)) == pytest.approx(np.log(8), abs=1e-5)


def test_imbalance__zero_when_words_share_the_batch_and_log_v_for_one_word() -> None:
    shared = 100 * torch.eye(4).reshape(1, 4, 2, 2)
    single = torch.zeros(3, 4, 2, 2)
    single[:, 1] = 100
    assert float(training.imbalance(shared)) == pytest.approx(0, abs=1e-5)
    assert float(training.imbalance(single)) == pytest.approx(np.log(4), abs=1e-5)


def test_logit_laplace__is_a_density_over_the_pixel_values() -> None:
    mapped = torch.linspace(1e-4, 1 - 1e-4, 200_001, dtype=torch.float64)
    images = (mapped - 0.1) / 0.8
    mean = torch.full_like(mapped, 0.3)
    log_scale = torch.full_like(mapped, -1.0)
    density = torch.stack(
        [
            torch.exp(-training.reconstruction_loss("logit_laplace", m, s, x))
            for m, s, x in zip(mean[::50], log_scale[::50], images[::50], strict=True)
        ]
    )
    assert float(torch.trapezoid(density, mapped[::50])) == pytest.approx(1, abs=1e-3)
