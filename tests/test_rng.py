"""Draws: a function of (seed, epoch, sample index), well mixed, the same for tensors and integers."""

import pytest
import torch

from mim_bench import rng


def test_uniform__ignores_batch_order_and_composition():
    whole = rng.uniform(torch.arange(1000), 7, seed=3, epoch=5, stream="a")
    order = torch.randperm(1000)
    assert torch.equal(rng.uniform(order, 7, seed=3, epoch=5, stream="a"), whole[order])
    assert torch.equal(rng.uniform(order[:3], 2, seed=3, epoch=5, stream="a"), whole[order[:3], :2])


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 6}, {"stream": "b"}])
def test_uniform__changes_with_each_part_of_its_key(change):
    base = {"seed": 3, "epoch": 5, "stream": "a"}
    a = rng.uniform(torch.arange(2000), 1, **base)[:, 0]
    b = rng.uniform(torch.arange(2000), 1, **(base | change))[:, 0]
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.08


def test_uniform__is_uniform_over_samples_and_draws():
    values = rng.uniform(torch.arange(20000), 4, seed=0, epoch=0, stream="u").double()
    assert values.min() >= 0 and values.max() < 1
    for draws in (values[:, 0], values[:, 3], values.flatten()):
        counts = torch.histc(draws, bins=20, min=0, max=1)
        expected = len(draws) / 20
        assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square, 19 degrees: p < 1e-4
    assert abs(torch.corrcoef(values.T) - torch.eye(4)).max() < 0.03


def test_mix__is_the_same_for_tensors_and_integers():
    numbers = [0, 1, 2**31, 2**62 + 12345, 2**63 - 1]
    tensor = rng._mix(torch.tensor(numbers))
    assert [int(x) % 2**64 for x in tensor] == [rng._mix_int(n) for n in numbers]


def test_permutation__is_one_and_differs_by_epoch():
    first, second = (rng.permutation(500, seed=1, epoch=e) for e in (0, 1))
    assert torch.equal(first.sort().values, torch.arange(500))
    assert (first == second).float().mean() < 0.05


def test_uniform__refuses_other_index_types():
    with pytest.raises(TypeError, match="int64"):
        rng.uniform(torch.arange(3, dtype=torch.int32), 1, seed=0, epoch=0, stream="a")
