"""Masks drawn by another thread are those of the sampler, whatever is asked for."""

import torch

from mim_bench.config.run import MaskConfig
from mim_bench.experiment.run import execute
from mim_bench.model.masking import MaskSampler
from mim_bench.train import pretrain
from mim_bench.train.drawn_ahead import DrawnAhead

SAMPLER = MaskSampler(MaskConfig(sampling="block", ratio=0.4), (8, 8))


def test_masks__drawn_ahead_are_the_samplers_in_order_out_of_order_and_in_the_next_epoch():
    ahead = DrawnAhead(SAMPLER)
    for epoch in range(2):
        batches = list(
            torch.randperm(200, generator=torch.Generator().manual_seed(epoch)).split(16)
        )
        ahead.expect(batches, seed=3, epoch=epoch)
        asked = [*batches[:9], torch.arange(5), batches[11], *batches[9:11]]
        for index in asked if epoch == 0 else batches:
            want = SAMPLER.noise(index, seed=3, epoch=epoch)
            assert torch.equal(ahead.noise(index, seed=3, epoch=epoch), want)
    assert not ahead.drawn and not ahead.waiting


def test_few_batches__are_drawn_at_a_time():
    ahead = DrawnAhead(SAMPLER)
    ahead.expect(list(torch.arange(1000).split(10)), seed=0, epoch=0)
    assert len(ahead.drawn) == 4 and len(ahead.waiting) == 96
    ahead.noise(torch.arange(10), seed=0, epoch=0)
    assert len(ahead.drawn) == 4 and len(ahead.waiting) == 95


def test_run__with_masks_drawn_ahead_trains_the_same_weights(small, tmp_path, monkeypatch):
    config = small("pixel", "mask.sampling=block", "mask.ratio=0.5", "evaluate.protocols=")
    execute(config, out=tmp_path / "plain")
    monkeypatch.setattr(
        pretrain,
        "_sampler",
        lambda config, device: DrawnAhead(MaskSampler(config.mask, (4, 4))),
    )
    execute(config, out=tmp_path / "ahead")
    plain, ahead = (
        next((tmp_path / name).glob("*/model.safetensors")).read_bytes()
        for name in ("plain", "ahead")
    )
    assert plain == ahead
