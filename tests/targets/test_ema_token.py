"""The online tokenizer of `ema_token`: scores, centres, temperature, class token, and that it does not collapse."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mim_bench.config.run import ModelConfig
from mim_bench.data.run_data import complete, open_data
from mim_bench.model.mae import MaskedAutoencoder
from mim_bench.targets.build import build_target
from mim_bench.train.fit import fitted_target
from mim_bench.train.pretrain import crop, pretrain

STUDENT = ModelConfig(
    patch_size=4, embed_dim=16, depth=2, num_heads=2, decoder_depth=1, decoder_dim=16,
    decoder_num_heads=2,
)  # fmt: skip
IMAGES = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def pair(shape=STUDENT, **params):
    target = build_target(
        "ema_token", image_size=16, patch_size=4, model=shape, num_prototypes=12, **params
    )
    model = MaskedAutoencoder(shape, target.geometry, target.dim)
    target.begin(model)
    return target, model


def cosines(model, images):
    """(B, 1 + L, K) of last tokens of the whole image with rows of the head, class token first, in numpy."""
    seen = []
    whole = copy.deepcopy(model)
    whole.num_visible = 16
    whole.decoder_pred.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        whole.predict(images, torch.arange(16).expand(len(images), -1), class_token=True)
    tokens = torch.cat(seen[::-1], dim=1).numpy()
    rows = model.decoder_pred.weight.detach().numpy()
    tokens = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    return tokens @ (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).T


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("mask_tokens", ["decoder", "encoder", "encoder_light"])
def test_values__are_the_centred_sharpened_softmax_of_cosines(mask_tokens):
    shape = STUDENT.model_copy(update={"mask_tokens": mask_tokens})
    target, model = pair(shape, center_momentum=0.75, temperature_fraction=0.5)
    scores = cosines(model, IMAGES)
    np.testing.assert_allclose(target(IMAGES), softmax(scores[:, 1:] / 0.04), atol=1e-5)
    target.after_step(model, 1, 4)  # the student has not moved
    patches, classes = 0.25 * scores[:, 1:].mean((0, 1)), 0.25 * scores[:, 0].mean(0)
    temperature = 0.04 + 0.5 * 0.03
    wanted = softmax((scores[:, 1:] - patches) / temperature)
    np.testing.assert_allclose(target.eval()(IMAGES), wanted, atol=1e-4)
    np.testing.assert_allclose(
        target.image_values(IMAGES), softmax((scores[:, 0] - classes) / temperature), atol=1e-4
    )


def test_centres__follow_all_parts_of_a_step_and_nothing_seen_in_evaluation():
    (whole, model), (parts, _) = pair(), pair()
    whole(IMAGES)
    for part in IMAGES.split(2):
        parts(part)
    parts.eval()(torch.rand(3, 3, 16, 16))
    for target in (whole, parts):
        target.after_step(model, 1, 4)
    torch.testing.assert_close(whole.centers, parts.centers)
    before = whole.centers.clone()
    whole.after_step(model, 2, 4)
    assert torch.equal(whole.centers, before)


def test_teacher__is_the_moving_average_of_the_whole_student():
    target, model = pair(tau_start=0.9, tau_end=1.0)
    expected = copy.deepcopy(model.state_dict())
    for step, tau in ((1, 1 - 0.05 * (1 + np.cos(np.pi / 4))), (2, 0.95), (4, 1.0)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        target.after_step(model, step, 4)
        for name, value in model.state_dict().items():
            expected[name] = tau * expected[name] + (1 - tau) * value
    for name, value in target.teacher.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_class_token__adds_its_loss_and_sends_gradient():
    without, model = pair()
    target, _ = pair(class_weight=2.0)
    noise = torch.rand(5, 16, generator=torch.Generator().manual_seed(1))
    patches = model(IMAGES, without, noise)[0]
    loss, prediction, mask = model(IMAGES, target, noise)
    shuffle = torch.argsort(noise, dim=1)
    both = model.predict(IMAGES, shuffle, class_token=True)
    assert torch.equal(both[:, 1:], prediction) and prediction.shape == (5, 16, 12)
    wanted = F.kl_div(both[:, 0].log_softmax(-1), target.image_values(IMAGES), reduction="none")
    torch.testing.assert_close(loss, patches + 2 * wanted.sum(-1).mean())
    only = model(IMAGES, target, noise, hidden_only=True)
    torch.testing.assert_close(only[0], loss)
    assert only[1].shape == (5, int(mask[0].sum()), 12)


def test_prototypes__do_not_collapse_in_a_short_run(small, tmp_path):
    config = small(
        "ema_token", "data.limit_images=600", "pretrain.epochs=10", "ema_token.num_prototypes=32"
    )
    data = open_data(config, torch.device("cpu"))
    config = complete(config, data)
    target = fitted_target(config, data, tmp_path, torch.device("cpu")).target
    pretrain(config, data, target, tmp_path, torch.device("cpu"))
    views = data.train.batches(
        [torch.arange(200)],
        crop(config),
        seed=1,
        epoch=0,
        device=torch.device("cpu"),
        num_workers=0,
    )
    images = next(views)[0].float() / 255
    values = target(images)
    shares = values.mean((0, 1))
    in_use = torch.special.entr(shares).sum().exp()
    each = torch.special.entr(values).sum(-1).exp().mean()
    assert in_use > 16 and each < in_use / 1.5  # many prototypes, and patches differ in theirs
