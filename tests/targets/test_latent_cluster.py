"""Online clusters of `latent_cluster`: values and updates against numpy, Sinkhorn's fixed point, no collapse."""

import numpy as np
import pytest
import torch

from mim_bench.config.run import ModelConfig
from mim_bench.data.run_data import complete, open_data
from mim_bench.model.mae import MaskedAutoencoder
from mim_bench.targets.build import build_target
from mim_bench.train.fit import fitted_target
from mim_bench.train.pretrain import crop, pretrain

CPU = torch.device("cpu")
STUDENT = ModelConfig(
    patch_size=4, embed_dim=16, depth=2, num_heads=2, decoder_depth=1, decoder_dim=16,
    decoder_num_heads=2,
)  # fmt: skip
IMAGES = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def pair(**params):
    target = build_target(
        "latent_cluster", image_size=16, patch_size=4, model=STUDENT, num_prototypes=6, **params
    )
    model = MaskedAutoencoder(STUDENT, target.geometry, target.dim)
    target.begin(model)
    return target, model


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def features(model, target):
    """(B, L, D), layer-normalised in numpy."""
    seen = []
    hook = model.encoder.blocks[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad(), hook:
        model.encoder(target.geometry.normalize(IMAGES))
    x = seen[0][:, 1:].numpy()
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("num_parts", [1, 3])
def test_values_and_updates__are_those_of_numpy(num_parts):
    target, model = pair(momentum=0.75, sinkhorn_rate=0.5)
    z, p = features(model, target), target.prototypes.numpy().copy()
    q = softmax(unit(z) @ p.T / 0.06)
    got = torch.cat([target(part) for part in IMAGES.chunk(num_parts)])
    np.testing.assert_allclose(got, q, atol=1e-4)
    target.eval()(torch.rand(2, 3, 16, 16))  # leaves no trace
    target.after_step(model, 1, 4)
    assigned = unit(np.einsum("blk,bld->kd", q, unit(z)))
    p = unit(0.75 * p + 0.25 * assigned)
    np.testing.assert_allclose(target.prototypes, p, atol=1e-4)
    center = 0.25 * z.mean((0, 1))
    bias = -0.5 * np.log((6 * q.mean(0) + 0.1) / 1.1)
    bias -= bias.mean(1, keepdims=True)
    np.testing.assert_allclose(target.bias, bias, atol=1e-4)
    wanted = softmax(unit(z - center) @ p.T / 0.06 + bias)
    np.testing.assert_allclose(target(IMAGES), wanted, atol=1e-3)


def test_biases__end_at_sinkhorns_assignment_of_each_position():
    target, model = pair(momentum=1 - 1e-12, sinkhorn_rate=0.5, temperature=0.2)
    scores = unit(features(model, target)) @ target.prototypes.numpy().T / 0.2
    for step in range(200):
        target(IMAGES)
        target.after_step(model, step + 1, 1000)
    wanted = np.exp(scores)
    for _ in range(200):  # Sinkhorn and Knopp, in CAPI's order
        wanted /= wanted.sum(0, keepdims=True)
        wanted /= wanted.sum(2, keepdims=True)
    np.testing.assert_allclose(target(IMAGES), wanted, atol=1e-3)
    np.testing.assert_allclose(target(IMAGES).mean(0), np.full((16, 6), 1 / 6), atol=1e-3)


def test_prototypes__are_in_equal_use_at_each_position_after_a_short_run(small, tmp_path):
    config = small(
        "latent_cluster", "data.limit_images=600", "pretrain.epochs=10",
        "latent_cluster.num_prototypes=16",
    )  # fmt: skip
    data = open_data(config, CPU)
    config = complete(config, data)
    target = fitted_target(config, data, tmp_path, CPU).target
    pretrain(config, data, target, tmp_path, CPU)
    views = data.train.batches(
        [torch.arange(400)], crop(config), seed=1, epoch=0, device=CPU, num_workers=0
    )
    values = target(next(views)[0].float() / 255)
    at_position = torch.special.entr(values.mean(0)).sum(-1).exp()
    assert at_position.min() > 0.8 * 16
    assert torch.special.entr(values).sum(-1).exp().mean() < 0.6 * 16  # patches differ
