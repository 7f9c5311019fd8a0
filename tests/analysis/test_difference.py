"""Paired differences: right interval, honest with few seeds, the same for the same input."""

import numpy as np
import pytest

from mim_bench.analysis.difference import difference


def rows(shift, num_seeds=3, num_images=2000, seed_std=0.0, seed=0):
    """Seed -> correctness of two rows whose accuracies differ by `shift`."""
    generator = np.random.default_rng(seed)
    hardness = generator.random(num_images)
    a, b = {}, {}
    for number in range(num_seeds):
        wobble = seed_std * generator.standard_normal()
        b[number] = hardness + 0.1 * generator.standard_normal(num_images) < 0.7
        a[number] = hardness + 0.1 * generator.standard_normal(num_images) < 0.7 + shift + wobble
    return a, b


def test_mean__is_that_of_the_images():
    a, b = rows(0.05)
    found = difference(a, b)
    assert found.mean == pytest.approx(np.mean([a[s].mean() - b[s].mean() for s in a]))
    assert found.low < found.mean < found.high and found.num_seeds == 3


def test_difference__changes_sign_with_the_rows():
    a, b = rows(0.05)
    one, other = difference(a, b), difference(b, a)
    assert one.mean == pytest.approx(-other.mean)
    assert one.low == pytest.approx(-other.high, abs=2e-3)


def test_row_against_itself__is_indistinguishable():
    a, _ = rows(0.0)
    found = difference(a, a)
    assert (found.mean, found.low, found.high) == (0, 0, 0) and not found.is_distinguishable


def test_large_difference__is_found_and_small_one_is_not():
    assert difference(*rows(0.08)).is_distinguishable
    assert not difference(*rows(0.001)).is_distinguishable


def test_one_seed__stderr_is_that_of_paired_images():
    a, b = rows(0.05, num_seeds=1)
    each = a[0].astype(float) - b[0]
    assert difference(a, b).stderr == pytest.approx(each.std() / np.sqrt(len(each)), rel=0.05)


def test_pairing__is_sharper_than_two_independent_samples():
    a, b = rows(0.05, num_seeds=1)
    unpaired = np.sqrt(a[0].var() / len(a[0]) + b[0].var() / len(b[0]))
    assert difference(a, b).stderr < 0.8 * unpaired


def test_stderr__has_the_variance_between_seeds_without_bias():
    """S - 1 of S seeds: the bootstrap's variance is the unbiased one, s^2 / S."""
    num_images = 50
    shares = [10, 20, 36]
    a = {s: np.arange(num_images) < k for s, k in enumerate(shares)}
    b = {s: np.zeros(num_images, dtype=bool) for s in range(3)}
    between = np.var([k / num_images for k in shares], ddof=1) / 3
    images = np.var(np.mean([a[s] for s in a], axis=0)) / num_images
    assert difference(a, b).stderr ** 2 == pytest.approx(between + images, rel=0.15)


def test_interval__covers_the_truth_about_as_often_as_it_says():
    """Of 200 pairs of equal rows with noise between seeds, about 95 % of the intervals hold 0."""
    held = 0
    for trial in range(200):
        found = difference(*rows(0.0, num_seeds=8, num_images=300, seed_std=0.02, seed=trial))
        held += found.low <= 0 <= found.high
    assert 172 <= held <= 199


def test_result__is_the_same_every_time():
    assert difference(*rows(0.03)) == difference(*rows(0.03))


def test_seeds__are_paired_by_their_number():
    a, b = rows(0.05)
    del b[1]
    assert difference(a, b).num_seeds == 2
    assert difference(a, {9: b[0]}) is None


def test_other_images__cannot_be_paired():
    a, b = rows(0.05)
    with pytest.raises(ValueError, match="different images"):
        difference(a, {0: b[0][:10]})


def test_detectable__is_what_four_in_five_would_find():
    assert difference(*rows(0.05)).detectable == pytest.approx(
        2.8016 * difference(*rows(0.05)).stderr, rel=1e-4
    )
