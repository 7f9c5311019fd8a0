"""The attentive probe sees where patches are, which their mean does not; kept and fresh tokens train alike."""

import torch
import torch.nn.functional as F

from mim_bench.evaluate.attentive import AttentiveProbe
from mim_bench.experiment.run import execute


def test_probe__tells_apart_what_the_mean_of_tokens_does_not():
    """Two classes whose images have the same tokens; of one the query must find the pair that goes together."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (256,), generator=generator)
    tokens = torch.randn(256, 2, 16, generator=generator)
    # the sign of the first value goes with that of the second, or against it: their means are equal
    sign = torch.where(labels == 1, 1.0, -1.0)
    first = torch.where(torch.rand(256, generator=generator) < 0.5, 1.0, -1.0)
    tokens[:, 0, 0], tokens[:, 0, 1] = 3 * first, 3 * first * sign
    tokens[:, 1, 0], tokens[:, 1, 1] = -3 * first, -3 * first * sign
    assert tokens.mean(1)[:, :2].abs().max() == 0
    probe = AttentiveProbe(16, 2, 2, seed=0)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(probe(tokens), labels).backward()
        optimizer.step()
    assert (probe(tokens).argmax(1) == labels).float().mean() > 0.9


def test_protocol__kept_and_fresh_tokens_give_the_same_answers(small, tmp_path):
    def record(*overrides):
        config = small("pixel", "evaluate.protocols=attentive", "attentive.epochs=2", *overrides)
        return execute(config, out=tmp_path / str(len(overrides))).records[0]

    kept, fresh = record(), record("runtime.memory_gb=0.000001")
    assert kept.metrics == fresh.metrics and kept.control == fresh.control
    assert kept.declared_readout == "last/attentive" and kept.control
    assert any("training loss" in note or "too few" in note for note in kept.notes)
