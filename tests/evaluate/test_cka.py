"""CKA and linear maps against their definitions in numpy."""

import numpy as np
import pytest
import torch

from mim_bench.evaluate.similarity import linear_cka, linear_r2

GENERATOR = np.random.default_rng(0)


def test_cka__is_the_hsic_of_centred_gram_matrices():
    x, y = GENERATOR.normal(size=(60, 7)), GENERATOR.normal(size=(60, 5))
    y[:, :3] += x[:, :3]
    center = np.eye(60) - 1 / 60
    k, m = center @ x @ x.T @ center, center @ y @ y.T @ center
    wanted = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert linear_cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(wanted)


def test_cka__does_not_see_rotation_scale_and_shift_and_sees_noise():
    x = torch.from_numpy(GENERATOR.normal(size=(500, 6)))
    turn = torch.linalg.qr(torch.from_numpy(GENERATOR.normal(size=(6, 6))))[0]
    assert linear_cka(x, 3 * x @ turn + 5) == pytest.approx(1)
    assert linear_cka(x, torch.from_numpy(GENERATOR.normal(size=(500, 6)))) < 0.1


def test_r2__is_that_of_least_squares_on_other_images():
    x, held = GENERATOR.normal(size=(300, 8)), GENERATOR.normal(size=(100, 8))
    weight = GENERATOR.normal(size=(8, 3))
    y = x @ weight + 2 + GENERATOR.normal(size=(300, 3))
    held_y = held @ weight + 2 + GENERATOR.normal(size=(100, 3))
    solution = np.linalg.lstsq(np.c_[x, np.ones(300)], y, rcond=None)[0]
    error = held_y - np.c_[held, np.ones(100)] @ solution
    wanted = 1 - (error**2).sum() / ((held_y - y.mean(0)) ** 2).sum()
    tensors = map(torch.from_numpy, (x, y, held, held_y))
    assert linear_r2(*tensors) == pytest.approx(wanted, abs=1e-4)
