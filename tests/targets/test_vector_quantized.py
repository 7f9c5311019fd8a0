"""Vector-quantised tokenizers: the codebook against numpy, what the fits learn, and the gate."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mim_bench.config.run import ModelConfig
from mim_bench.errors import UserError
from mim_bench.targets import fitted
from mim_bench.targets.build import build_target
from mim_bench.targets.tokenizer.quantizer import Quantizer

OUTPUTS = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0))


def rows(x):
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).numpy()


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def quantizer(num=6, decay=0.75):
    book = Quantizer(num, 4, decay)
    drawn = torch.randn(num, 4, generator=torch.Generator().manual_seed(1))
    book.codes.copy_(F.normalize(drawn, dim=1))
    book.share.fill_(1 / num)
    return book


def test_index__is_the_code_of_the_smallest_angle():
    book = quantizer()
    angles = np.arccos(unit(rows(OUTPUTS)) @ book.codes.numpy().T)
    assert (book.index(OUTPUTS).flatten().numpy() == angles.argmin(1)).all()
    assert torch.equal(book.index(3 * OUTPUTS), book.index(OUTPUTS))


def test_gradient__passes_the_codes_as_if_they_were_not_there():
    book, outputs = quantizer(), OUTPUTS.clone().requires_grad_()
    codes, distance = book(outputs)
    torch.testing.assert_close(codes, book.look_up(book.index(OUTPUTS)))
    wanted = 1 - (unit(rows(OUTPUTS)) @ book.codes.numpy().T).max(1).mean()
    assert distance.item() == pytest.approx(wanted, rel=1e-5)
    weights = torch.randn_like(OUTPUTS)
    (got,) = torch.autograd.grad((codes * weights).sum(), outputs)
    (plain,) = torch.autograd.grad((F.normalize(outputs, dim=1) * weights).sum(), outputs)
    torch.testing.assert_close(got, plain)


def test_update__moves_codes_to_the_mean_of_their_outputs():
    book = quantizer()
    before, taken = book.codes.numpy().copy(), book.index(OUTPUTS).flatten().numpy()
    book.update(OUTPUTS)
    for code in range(6):
        own = unit(rows(OUTPUTS))[taken == code]
        wanted = before[code]
        if len(own):
            wanted = unit(0.75 * before[code] + 0.25 * unit(own.sum(0)))
        np.testing.assert_allclose(book.codes[code], wanted, atol=1e-5)
        assert book.share[code].item() == pytest.approx(0.9 / 6 + 0.1 * len(own) / 30)


def test_update__starts_idle_codes_at_different_outputs():
    book = Quantizer(6, 4, 0.999999)
    book.update(OUTPUTS)
    nearest = (book.codes.numpy() @ unit(rows(OUTPUTS)).T).max(1)
    np.testing.assert_allclose(nearest, 1, atol=1e-4)
    assert len(book.index(OUTPUTS).unique()) == 6


class Images:
    """Squares and stripes of random place, of four kinds."""

    num_images = 96

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(96, 1, 16, 16, generator=generator).mul(0.1)
        for i, image in enumerate(pixels[:, 0]):
            y, x = torch.randint(10, (2,), generator=generator).tolist()
            image[y : y + 6, x : x + 6] = 0.9
            if i % 2:
                image[:, ::2] *= 0.3
        self.images = pixels

    def __iter__(self):
        yield from self.images.split(32)


def built(name, **params):
    model = ModelConfig(embed_dim=24, depth=2, num_heads=3, patch_size=4)
    return build_target(
        name, image_size=16, patch_size=4, in_chans=1, mean=(0.3,), std=(0.3,), model=model,
        **{"vocab_size": 16, "width": 8, "fit_epochs": 6, "fit_batch_size": 16, **params},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["vq_perceptual", "vq_distilled"])
def test_fit__learns_codes_that_are_used_and_depend_on_the_seed(name, monkeypatch):
    monkeypatch.setattr(fitted, "MIN_PERPLEXITY", 0.25)
    images = Images()
    target, again, other = (built(name) for _ in range(3))
    figures = target.fit(images, seed=0)
    assert figures["codebook_perplexity"] > 4 and 0.25 < figures["codebook_use"] <= 1
    assert (
        figures["reconstruction_loss"]
        < built(name, fit_epochs=1).fit(images, seed=0)["reconstruction_loss"]
    )
    again.fit(images, seed=0)
    other.fit(images, seed=1)
    values = target(images.images)
    assert torch.equal(again(images.images), values)
    assert not torch.equal(other(images.images), values)
    assert not any(parameter.requires_grad for parameter in target.parameters())
    with pytest.raises(RuntimeError, match="needs `fit`"):
        built(name)(images.images)


def test_perceptual__decodes_the_image():
    target, images = built("vq_perceptual", fit_epochs=40), Images()
    target.fit(images, seed=0)
    picture = target.picture(target(images.images), images.images)[:, :1]
    error = (picture - images.images).abs().mean()
    assert error < 0.65 * (images.images - images.images.mean(0)).abs().mean()


def test_distilled__decodes_the_teachers_features():
    target, images = built("vq_distilled", fit_epochs=16), Images()
    target.fit(images, seed=0)
    seen = []
    target.teacher.blocks[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        target.teacher.forward_features(target.geometry.normalize(images.images))
    wanted = F.layer_norm(seen[0][:, 1:], (24,))
    got = target.decoded(target.codes(target(images.images))).flatten(2).mT
    cosine = F.cosine_similarity(got, wanted, dim=-1).mean()
    mean = F.cosine_similarity(wanted.mean(0, keepdim=True), wanted, dim=-1).mean()
    assert 1 - cosine < 0.7 * (1 - mean)  # more than the mean of each position says


def test_gate__refuses_a_codebook_that_is_hardly_used(monkeypatch):
    monkeypatch.setattr(fitted, "MIN_PERPLEXITY", 0.999)
    with pytest.raises(UserError, match=r"below the gate: perplexity .* vocab_size 16 .* at least"):
        built("vq_distilled", fit_epochs=1).fit(Images(), seed=0)
