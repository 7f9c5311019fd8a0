"""Relations of a frozen teacher against numpy."""

import numpy as np
import pytest
import torch

from mim_bench.config.run import ModelConfig
from mim_bench.errors import UserError
from mim_bench.targets.build import build_target

IMAGES = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def built(**params):
    model = ModelConfig(embed_dim=48, depth=2, num_heads=3, patch_size=8)
    return build_target(
        "relation", image_size=32, patch_size=8, in_chans=1, mean=(0.3,), std=(0.3,), model=model, **params
    )  # fmt: skip


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("block", [0, 1])
def test_relation__is_the_softmax_of_products_within_each_head(block):
    target = built(block=block, kinds=("qq", "vv", "qk"))
    seen = []
    layer = target.teacher.blocks[block].attn.qkv
    layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    values = target(IMAGES).numpy().reshape(3, 16, 3, 3, 16)
    assert target.dim == 3 * 3 * 16
    projected = seen[0].numpy() @ layer.weight.numpy().T + layer.bias.numpy()
    for head in range(3):
        q, k, v = (
            projected[:, 1:, 48 * n + 16 * head : 48 * n + 16 * (head + 1)] for n in range(3)
        )
        for kind, (a, b) in enumerate(((q, q), (v, v), (q, k))):
            wanted = softmax(a @ b.transpose(0, 2, 1) / 4)
            np.testing.assert_allclose(values[:, :, kind, head], wanted, atol=1e-5)


def test_loss__is_the_mean_divergence_over_heads_and_kinds():
    target = built()
    values = target(IMAGES)
    logits = torch.randn(3, 16, target.dim, generator=torch.Generator().manual_seed(1))
    p = values.numpy().reshape(3, 16, 6, 16)
    q = softmax(logits.numpy().reshape(3, 16, 6, 16))
    wanted = (p * np.log(p / q)).sum(-1).mean(-1)
    np.testing.assert_allclose(target.loss(logits, values).numpy(), wanted, rtol=1e-4)
    assert target.loss(values.log(), values).abs().max() < 1e-6


def test_block__must_be_one_of_the_teachers():
    with pytest.raises(UserError, match="block=2: allowed: -2 to 1, the teacher has 2 blocks"):
        built(block=2)
