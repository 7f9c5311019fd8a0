"""Masks: MAE's conventions exactly, BEiT's generator by its statistics, equal counts always."""

import json
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mim_bench.config.run import MaskConfig
from mim_bench.errors import UserError
from mim_bench.model import masking


def test_num_visible__truncates_as_official():
    table = json.loads((GOLDEN / "mae.json").read_text())["len_keep"]
    for case, expected in table.items():
        num_patches, ratio = case.split(",")
        assert masking.num_visible(int(num_patches), float(ratio)) == expected


@pytest.mark.parametrize("ratio", ["0.25", "0.5", "0.6", "0.9"])
def test_split__equals_official_for_the_same_noise(golden, ratio):
    mae = golden("mae")
    keep = int(mae[f"ratio_{ratio}_len_keep"])
    mask = masking.split(torch.from_numpy(mae["noise"]), keep)[1]
    assert torch.equal(mask, torch.from_numpy(mae[f"ratio_{ratio}_mask"]).bool())


@settings(max_examples=40, deadline=None)
@given(
    sampling=st.sampled_from(["random", "block", "grid", "multi_block", "inverse_block"]),
    ratio=st.sampled_from([0.1, 0.4, 0.5, 0.75, 0.9]),
    grid=st.tuples(st.integers(3, 14), st.integers(3, 14)),
    seed=st.integers(0, 5),
)
def test_masks__hide_equally_many_and_partition(sampling, ratio, grid, seed):
    config = MaskConfig(sampling=sampling, ratio=ratio, block_min_patches=4)
    sampler = masking.MaskSampler(config, grid)
    noise = sampler.noise(torch.arange(6), seed=seed, epoch=1)
    shuffle, mask = masking.split(noise, sampler.num_visible)
    visible, hidden = shuffle.tensor_split([sampler.num_visible], dim=1)
    num_patches = grid[0] * grid[1]
    assert (mask.sum(1) == num_patches - sampler.num_visible).all()
    assert not mask.gather(1, visible).any()
    assert mask.gather(1, hidden).all()
    assert hidden.shape[1] + visible.shape[1] == num_patches
    assert torch.equal(shuffle.sort(1).values, torch.arange(num_patches).expand(6, -1))
    if sampling != "grid":
        assert sampler.num_visible == masking.num_visible(num_patches, ratio)


@pytest.mark.parametrize("sampling", get_args(MaskConfig.model_fields["sampling"].annotation))
def test_noise__depends_on_seed_epoch_and_sample_alone(sampling):
    sampler = masking.MaskSampler(MaskConfig(sampling=sampling), (8, 8))
    whole = sampler.noise(torch.arange(20), seed=1, epoch=2)
    order = torch.randperm(20)
    assert torch.equal(sampler.noise(order, seed=1, epoch=2), whole[order])
    assert torch.equal(sampler.noise(order[:1], seed=1, epoch=2)[0], whole[order[0]])
    assert not torch.equal(sampler.noise(torch.arange(20), seed=1, epoch=3), whole)
    assert not torch.equal(sampler.noise(torch.arange(20), seed=2, epoch=2), whole)


@pytest.mark.parametrize(
    "key", ["beit_class_default_min4", "beit_training_script_min16", "maskfeat_slowfast_ratio04"]
)
def test_block_masks__have_the_statistics_of_the_official_generator(key):
    want = json.loads((GOLDEN / "beit_mask.json").read_text())[key]
    config = MaskConfig(sampling="block", block_min_patches=want["min_num_patches"])
    quota, draws = want["num_masking_patches"], 4000
    masks = masking.block_masks(
        torch.arange(draws), (14, 14), quota, config, seed=0, epoch=0
    ).numpy()
    counts = masks.sum((1, 2))
    assert counts.max() == quota
    assert abs(counts.mean() - want["mean_count"]) < 4 * want["std_count"] / np.sqrt(2000)
    sizes = [ndimage.label(mask)[1] for mask in masks]
    assert abs(counts.sum() / np.sum(sizes) / want["mean_component_size_4"] - 1) < 0.06
    frequency = np.array(want["pooled_frequency_map_5_seeds"])
    assert np.abs(masks.mean(0) - frequency).max() < 0.05
    shares = {int(count): times / want["draws"] for count, times in want["count_histogram"].items()}
    assert abs((counts == quota).mean() - shares[quota]) < 0.03


def test_block_sampling__keeps_the_generators_block_and_tops_it_up():
    config = MaskConfig(sampling="block", ratio=75 / 196, block_min_patches=16)
    sampler = masking.MaskSampler(config, (14, 14))
    index = torch.arange(200)
    mask = masking.split(sampler.noise(index, seed=0, epoch=0), sampler.num_visible)[1]
    block = masking.block_masks(index, (14, 14), 75, config, 0, 0).flatten(1)
    assert (block <= mask).all()
    assert 0 < (mask.sum() - block.sum()) / mask.sum() < 0.02


def test_grid_sampling__keeps_one_of_four_at_75_per_cent():
    sampler = masking.MaskSampler(MaskConfig(sampling="grid", ratio=0.75), (6, 4))
    mask = masking.split(sampler.noise(torch.arange(3), seed=0, epoch=0), sampler.num_visible)[1]
    visible = ~mask.view(3, 6, 4)
    assert visible[:, ::2, ::2].all()
    assert visible.sum() == 3 * 6


def masks_of(sampling: str, ratio: float, num: int = 2000) -> np.ndarray:
    """(N, 14, 14) bool."""
    sampler = masking.MaskSampler(MaskConfig(sampling=sampling, ratio=ratio), (14, 14))
    noise = sampler.noise(torch.arange(num), seed=0, epoch=0)
    return masking.split(noise, sampler.num_visible)[1].view(num, 14, 14).numpy()


def test_square__hides_whole_units_their_number_rounded_up():
    masks = masks_of("square", 0.6)  # 49 units of 2 x 2: 29.4, so 30
    units = masks.reshape(-1, 7, 2, 7, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 49, 4)
    assert (units.all(2) == units.any(2)).all()
    assert (units.all(2).sum(1) == 30).all()
    assert np.abs(units[:, :, 0].mean(0) - 30 / 49).max() < 0.05
    with pytest.raises(UserError, match="needs a grid of 2 x 2 units"):
        masking.MaskSampler(MaskConfig(sampling="square"), (7, 8))


def test_several_blocks__are_i_jepas():
    blocks = masking.several_blocks(torch.arange(2000), (14, 14), 0, 0).numpy()
    share = blocks.mean((1, 2))
    # four blocks of 0.15 to 0.2: no less than one of them, no more than all; on average they overlap
    assert share.min() > 0.13 and share.max() < 0.82 and 0.4 < share.mean() < 0.6
    assert all(1 <= ndimage.label(one)[1] <= 4 for one in blocks[:200])
    masks = masks_of("multi_block", 0.75)
    assert (blocks <= masks).mean() > 0.999  # the union is below the ratio, and topped up


def test_kept_blocks__are_squares_of_three_and_stay_visible():
    kept = masking.kept_blocks(torch.arange(500), (14, 14), 49, 0, 0).numpy()
    assert 0.1 < kept.mean() < 0.25  # 5 blocks of 9 of 196, some over the border or each other
    opened = np.stack(
        [ndimage.binary_opening(np.pad(one, 2), np.ones((3, 3)))[2:-2, 2:-2] for one in kept]
    )
    inside = kept[:, 1:-1, 1:-1]  # at the border a block is cut
    assert (opened[:, 1:-1, 1:-1] == inside).mean() > 0.9
    masks = masks_of("inverse_block", 0.75, 500)
    assert not (masks & kept).any()
    # visible patches lie together, more than random ones
    together = [ndimage.label(~one)[1] for one in masks]
    alone = [ndimage.label(~one)[1] for one in masks_of("random", 0.75, 500)]
    assert np.mean(together) < 0.8 * np.mean(alone)
