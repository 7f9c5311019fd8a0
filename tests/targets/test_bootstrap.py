"""The teacher of `bootstrap`: whose features it has in which stage."""

import pytest
import torch
import torch.nn.functional as F

from mim_bench.config.run import ModelConfig
from mim_bench.model.mae import MaskedAutoencoder
from mim_bench.targets.build import build_target

STUDENT = ModelConfig(
    patch_size=4, embed_dim=16, depth=2, num_heads=2, decoder_depth=1, decoder_dim=16,
    decoder_num_heads=2,
)  # fmt: skip
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("num_stages", "ends"), [(1, []), (2, [5]), (3, [3, 6]), (4, [2, 5, 7])])
def test_teacher__is_the_student_at_the_end_of_the_stage_before(num_stages, ends):
    target = build_target(
        "bootstrap", image_size=16, patch_size=4, model=STUDENT, num_stages=num_stages
    )
    model = MaskedAutoencoder(STUDENT, target.geometry, target.dim)
    target.begin(model)
    changed, before = [], target(IMAGES)
    for step in range(1, 11):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        target.after_step(model, step, 10)
        now = target(IMAGES)
        if not torch.equal(now, before):
            changed.append(step)
            block: list[torch.Tensor] = []
            hook = model.encoder.blocks[-1].register_forward_hook(
                lambda _, __, output, block=block: block.append(output)
            )
            with torch.no_grad(), hook:
                model.encoder(target.geometry.normalize(IMAGES))
            torch.testing.assert_close(now, F.layer_norm(block[0][:, 1:], (16,)))
        before = now
    assert changed == ends


def test_loss__is_smooth_l1_of_difference_1():
    target = build_target("bootstrap", image_size=16, patch_size=4, model=STUDENT)
    difference = torch.tensor([0.5, 3.0]).repeat(8)
    loss = target.loss(difference.view(1, 1, 16), torch.zeros(1, 1, 16))
    torch.testing.assert_close(loss, torch.tensor([[(0.5**2 / 2 + 3 - 0.5) / 2]]))
