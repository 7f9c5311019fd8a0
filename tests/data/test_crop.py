"""Crop boxes and flips: functions of (seed, epoch, index), distributed as torchvision's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from mim_bench.data.crop import Crop, EvalCrop, eval_box

SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))


def sizes(size: tuple[int, int], num: int) -> torch.Tensor:
    return torch.tensor(size).expand(num, 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    source=SIZES,
    size=SIZES,
    mode=st.sampled_from(["random_size", "fixed_size", "none"]),
    seed=st.integers(0, 9),
)
def test_plan__boxes_inside_image(source, size, mode, seed):
    boxes, flips = Crop(size=size, mode=mode).plan(
        torch.arange(20), sizes(source, 20), seed=seed, epoch=1
    )
    top, left, height, width = boxes.unbind(1)
    assert boxes.dtype == torch.int64 and flips.dtype == torch.bool
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= source[0]).all() and (left + width <= source[1]).all()


@pytest.mark.parametrize("mode", ["random_size", "fixed_size", "none"])
def test_plan__independent_of_batch_composition(mode):
    crop = Crop(size=(24, 32), mode=mode)
    index = torch.randperm(500, generator=torch.Generator().manual_seed(0)) * 7919
    source = torch.stack([20 + index % 37, 24 + index % 53], dim=1)
    boxes, flips = crop.plan(index, source, seed=3, epoch=4)
    for order in (torch.arange(500).flip(0), torch.arange(500)[5::3], torch.tensor([17])):
        again = crop.plan(index[order], source[order], seed=3, epoch=4)
        assert torch.equal(again[0], boxes[order]) and torch.equal(again[1], flips[order])
    singly = [crop.plan(index[i : i + 1], source[i : i + 1], seed=3, epoch=4) for i in range(50)]
    assert torch.equal(torch.cat([box for box, _ in singly]), boxes[:50])


def test_plan__changes_with_seed_and_epoch():
    crop, index, source = Crop(size=(32, 32)), torch.arange(200), sizes((32, 32), 200)
    first = crop.plan(index, source, seed=0, epoch=0)
    for seed, epoch in ((1, 0), (0, 1)):
        other = crop.plan(index, source, seed=seed, epoch=epoch)
        assert (other[0] == first[0]).all(dim=1).float().mean() < 0.2
        assert 0.3 < (other[1] == first[1]).float().mean() < 0.7


@pytest.mark.parametrize("source", [(64, 64), (48, 100)])
def test_random_size__distributed_as_torchvision(source):
    num = 3000
    ours, _ = Crop(size=(32, 32)).plan(torch.arange(num), sizes(source, num), seed=0, epoch=0)
    torch.manual_seed(0)
    blank = torch.empty(1, *source)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(blank, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(num)]
    )
    for column in range(4):
        a, b = ours[:, column].double(), theirs[:, column].double()
        error = math.sqrt((a.var() + b.var()) / num)
        assert abs(a.mean() - b.mean()) < 4 * error
        assert abs(a.std() - b.std()) < 0.06 * b.std()


def test_random_size__central_fallback_where_no_try_fits():
    boxes, _ = Crop(size=(8, 8), scale=(1, 1)).plan(
        torch.arange(50), torch.tensor([[10, 100]] * 25 + [[100, 10]] * 25), seed=0, epoch=0
    )
    assert boxes[:25].unique(dim=0).tolist() == [[0, 43, 10, 13]]
    assert boxes[25:].unique(dim=0).tolist() == [[43, 0, 13, 10]]


def test_random_size__aspect_follows_output():
    boxes, _ = Crop(size=(16, 32), scale=(0.2, 0.4)).plan(
        torch.arange(1000), sizes((100, 200), 1000), seed=0, epoch=0
    )
    aspect = boxes[:, 3] / boxes[:, 2]
    assert 2 * 0.72 < aspect.min() < 2 * 0.78 and 2 * 1.28 < aspect.max() < 2 * 1.38


def test_fixed_size__seven_eighths_at_every_place():
    boxes, _ = Crop(size=(28, 28), mode="fixed_size").plan(
        torch.arange(2000), sizes((32, 40), 2000), seed=0, epoch=0
    )
    assert boxes[:, 2:].unique(dim=0).tolist() == [[28, 28]]
    assert boxes[:, 0].unique().tolist() == list(range(5))
    assert boxes[:, 1].unique().tolist() == list(range(13))


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_flip__has_its_probability(probability):
    crop = Crop(size=(8, 8), mode="none", flip=probability)
    _, flips = crop.plan(torch.arange(4000), sizes((8, 8), 4000), seed=0, epoch=0)
    assert flips.float().mean().item() == pytest.approx(probability, abs=0.03)


def test_eval_box__central_with_aspect_of_output():
    source = torch.tensor([[256, 256], [256, 341], [32, 32], [100, 30]])
    assert eval_box(source, (224, 224), 0.875).tolist()[:2] == [
        [16, 16, 224, 224],
        [16, 58, 224, 224],
    ]
    assert eval_box(source, (32, 32)).tolist()[2] == [0, 0, 32, 32]
    assert eval_box(source, (64, 32)).tolist()[3] == [20, 0, 60, 30]


def test_eval_crop__same_in_every_epoch():
    crop = EvalCrop(size=(16, 16), crop_fraction=0.875)
    first = crop.plan(torch.arange(4), sizes((32, 48), 4), seed=0, epoch=0)
    other = crop.plan(torch.arange(4), sizes((32, 48), 4), seed=5, epoch=9)
    assert torch.equal(first[0], other[0]) and not first[1].any() and not other[1].any()


@pytest.mark.parametrize(
    "wrong", [{"scale": (0.5, 0.2)}, {"scale": (0.0, 1.0)}, {"ratio": (2.0, 1.0)}, {"size": (0, 4)}]
)
def test_crop__refuses_empty_ranges(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Crop(**({"size": (4, 4)} | wrong))
