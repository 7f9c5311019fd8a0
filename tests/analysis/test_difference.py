"""The blocked model: right by hand, by textbook, and as often wrong as it says, at the seeds and test sizes in use."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mim_bench.analysis.difference import (
    _holm,
    _Model,
    all_pairs,
    best,
    contrasts,
    differences,
    paired,
)


def rows(
    shifts, num_seeds=3, num_images=2000, *, training=0.004, own_images=0.0, seed=0, accuracy=0.75
):
    """Label -> seed -> correctness of rows with these shifts in accuracy.

    `training`: deviation between trainings of a row; `own_images`: how much each row has images of its own that
    are hard for it whatever the seed.
    """
    generator = np.random.default_rng(seed)
    hardness = generator.random(num_images, np.float32)
    of_seed = 0.01 * generator.standard_normal(num_seeds)
    found = {}
    for label, shift in shifts.items():
        own = (hardness + own_images * generator.standard_normal(num_images, np.float32)) % 1
        found[label] = {}
        for number in range(num_seeds):
            level = accuracy + shift + of_seed[number] + training * generator.standard_normal()
            noise = 0.05 * generator.standard_normal(num_images, np.float32)
            found[label][number] = (own + noise) % 1 < level
    return found


EQUAL = dict.fromkeys("abcd", 0.0)


@pytest.mark.parametrize("num_images", [2_000, 10_000, 50_000])
@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_equal_rows__are_told_apart_as_seldom_as_promised(num_seeds, num_images):
    """Of tables with equal rows at most 5 % call any of them distinguishable, whatever varies most."""
    trials = 60 if num_images == 50_000 else 120
    for own_images in (0.0, 0.1):
        wrong = covered = 0
        for trial in range(trials):
            made = rows(EQUAL, num_seeds, num_images, own_images=own_images, seed=trial)
            found = differences(made, "a").values()
            wrong += any(one.is_distinguishable for one in found)
            covered += sum(one.low <= 0 <= one.high for one in found)
        assert wrong <= stats.binom.ppf(0.999, trials, 0.05)
        assert covered / trials / 3 >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize("num_images", [2_000, 10_000, 50_000])
@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("deviation", [0.0, 0.01])
def test_interval_to_a_row_without_pre_training__covers_as_often_as_promised(
    num_seeds, num_images, deviation
):
    """A fixed feature has no share in what a seed does to encoders; random weights have a deviation of their own."""
    trials = 50 if num_images == 50_000 else 100
    covered = 0
    for trial in range(trials):
        generator = np.random.default_rng(trial)
        made = rows({"a": 0.0}, num_seeds, num_images, seed=trial)
        right = generator.random((num_seeds, num_images), np.float32)
        own = 0.6 + deviation * generator.standard_normal(num_seeds)
        fixed = {
            seed: float((right[seed if deviation else 0] < own[seed]).mean())
            for seed in range(num_seeds)
        }
        found = differences(made, "a", {"fixed": fixed})["fixed"]
        covered += found.low <= 0.6 - 0.75 <= found.high
    assert covered >= stats.binom.ppf(0.001, trials, 0.95)


def test_model__hand_computed_and_as_the_two_way_analysis_of_variance():
    table = np.array([[0.5, 0.7], [0.7, 0.7], [0.6, 1.0]])  # rows x seeds
    made = {
        label: {s: np.arange(10) < round(10 * table[i, s]) for s in range(2)}
        for i, label in enumerate("abc")
    }
    found = differences(made, "a")
    assert found["b"].mean == pytest.approx(0.1) and found["c"].mean == pytest.approx(0.2)
    centred = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    residual = (centred**2).sum() / 2  # (3 - 1)(2 - 1) degrees of freedom
    each = np.stack([made["b"][s].astype(float) - made["a"][s] for s in range(2)])
    beyond = max(0.0, each.mean(0).var() / 10 - each.var(0, ddof=1).mean() / 20)
    assert found["b"].stderr == pytest.approx(np.sqrt(2 * residual / 2 + beyond))


def test_difference__of_images_alone_is_the_paired_one():
    made = rows({"a": 0.05, "b": 0.0}, 1)
    each = made["a"][0].astype(float) - made["b"][0]
    found = paired(made["a"][0], made["b"][0])
    assert found.mean == pytest.approx(each.mean())
    assert found.stderr == pytest.approx(each.std() / np.sqrt(len(each)), rel=1e-5)
    assert found.high - found.mean == pytest.approx(1.96 * found.stderr, rel=1e-3)


def test_interval__is_never_narrower_than_the_answers_leave_by_a_lucky_residual():
    """Three seeds whose accuracies happen to be the same: each image's answers still change from seed to seed."""
    generator = np.random.default_rng(0)
    made = {
        label: {seed: generator.permutation(np.arange(2000) < num) for seed in range(3)}
        for label, num in (("a", 1200), ("b", 1240))
    }
    found = differences(made, "a")["b"]
    of_images = np.mean([made["b"][seed] * 1.0 - made["a"][seed] for seed in range(3)], axis=0)
    assert found.mean == pytest.approx(0.02)
    assert found.stderr >= 0.99 * of_images.std() / np.sqrt(2000)


def test_large_difference__is_found_small_one_not_and_a_single_seed_never():
    shifts = {"a": 0.0, "b": 0.08, "c": 0.001}
    found = differences(rows(shifts), "a")
    assert found["b"].is_distinguishable and not found["c"].is_distinguishable
    assert found["b"].low < 0.08 < found["b"].high
    assert not differences(rows(shifts, 1), "a")["b"].is_distinguishable
    assert all(
        one.p == 1
        for one in differences({"a": rows(shifts)["a"], "d": rows(shifts)["a"]}, "a").values()
    )


def test_difference__changes_sign_with_the_reference():
    made = rows({"a": 0.0, "b": 0.03})
    one, other = differences(made, "a")["b"], differences(made, "b")["a"]
    assert (one.mean, one.low, one.p) == pytest.approx((-other.mean, -other.high, other.p))


def test_holm__steps_down_and_never_back():
    given = [replace(paired(*np.zeros((2, 9))), p=p) for p in (0.04, 0.01, 0.02, 0.9)]
    assert [one.p for one in _holm(given)] == pytest.approx([0.08, 0.04, 0.06, 0.9])


def test_holm__counts_rows_without_pre_training_too():
    made = rows({"a": 0.0, "b": 0.012}, 5, seed=3)
    alone = differences(made, "a")["b"]
    # indistinguishable itself, so that the other is the first of two
    control = dict.fromkeys(range(5), 0.75)
    both = differences(made, "a", {"control": control})
    assert both["b"].p == pytest.approx(min(1.0, 2 * alone.p)) and alone.p < both["control"].p


def test_holm__holds_for_all_pairs_and_for_contrasts():
    made = rows({"a": 0.0, "b": 0.02, "c": 0.01, "d": 0.015}, 5)
    model = _Model.of(made)
    pairs = all_pairs(made)
    raw = {pair: model.pair(made, *pair) for pair in pairs}
    assert len(pairs) == 6 and [one.p for one in pairs.values()] == pytest.approx(
        [one.p for one in _holm(list(raw.values()))]
    )
    assert any(pairs[pair].p > raw[pair].p for pair in pairs)
    weights = {"b": {"b": 1.0, "a": -1.0}, "c": {"c": 1.0, "a": -1.0}, "d": {"d": 1.0, "a": -1.0}}
    found = contrasts(made, weights)
    single = {name: contrasts(made, {name: of})[name].p for name, of in weights.items()}
    assert any(found[name].p > single[name] for name in weights)


def test_missing_cells__of_a_good_seed_do_not_move_a_row():
    """Row b lacks the seed on which all do better by 10 points: its plain mean would be 5 points too low."""
    generator = np.random.default_rng(0)
    level = {0: 0.6, 1: 0.7}
    made = {
        label: {s: generator.random(200_000) < level[s] + (label == "b") * 0.02 for s in level}
        for label in "abc"
    }
    del made["b"][1]
    assert differences(made, "a")["b"].mean == pytest.approx(0.02, abs=0.006)


def test_detectable__is_found_four_times_in_five():
    size = np.mean([differences(rows(EQUAL, 5, seed=t), "a")["b"].detectable for t in range(40)])
    hits = 0
    for trial in range(150):
        found = differences(rows(EQUAL | {"b": size}, 5, seed=trial), "a")["b"]
        hits += not found.low <= 0 <= found.high
    assert 0.65 <= hits / 150 <= 0.95


def test_detectable__among_many_rows_is_what_holm_finds():
    """Of nine rows one differs by the printed difference: it is called distinguishable four times in five."""
    equal = dict.fromkeys("abcdefghi", 0.0)
    deltas = [differences(rows(equal, 5, seed=trial), "a")["b"] for trial in range(30)]
    size = np.mean([delta.detectable for delta in deltas])
    hits = sum(
        differences(rows(equal | {"b": size}, 5, seed=trial), "a")["b"].is_distinguishable
        for trial in range(120)
    )
    assert 0.68 <= hits / 120 <= 0.95


def test_best__needs_every_pair_and_five_seeds():
    shifts = {"a": 0.0, "b": 0.08, "c": 0.01}
    assert best(rows(shifts, 5)) == "b"
    assert best(rows(shifts, 3)) is None
    assert best(rows(EQUAL, 5)) is None
    assert best(rows(shifts | {"d": 0.08}, 5)) is None


def test_missing_cells__are_left_to_the_model():
    made = rows({"a": 0.0, "b": 0.05, "c": 0.0}, 4)
    del made["b"][1], made["c"][3]
    found = differences(made, "a")
    assert found["b"].num_seeds == 3 and found["b"].low < 0.05 < found["b"].high
    assert differences({"a": {0: made["a"][0]}, "b": {2: made["b"][2]}}, "a") == {}


def test_other_images__cannot_be_paired():
    made = rows({"a": 0.0, "b": 0.0}, 2)
    made["b"][1] = made["b"][1][:10]
    with pytest.raises(ValueError, match="different images"):
        differences(made, "a")


def test_row_without_answers__is_compared_cautiously_and_leaves_the_others_alone():
    generator = np.random.default_rng(0)
    rows = {
        label: {seed: generator.random(4000) < level for seed in range(4)}
        for label, level in (("a", 0.6), ("b", 0.62))
    }
    alone = differences(rows, "a")["b"]
    control = {seed: float((generator.random(4000) < 0.4).mean()) for seed in range(4)}
    found = differences(rows, "a", {"random weights": control, "unknown": {9: 0.5}})
    assert set(found) == {"b", "random weights"}
    assert (found["b"].mean, found["b"].low) == (alone.mean, alone.low)
    assert found["b"].p >= alone.p  # one more comparison
    of_control = found["random weights"]
    assert of_control.mean == pytest.approx(-0.2, abs=0.02) and of_control.is_distinguishable
    # the same row with its answers at hand has no wider interval
    answers = {seed: generator.random(4000) < 0.4 for seed in range(4)}
    paired = differences(rows | {"random weights": answers}, "a")["random weights"]
    assert of_control.stderr >= 0.8 * paired.stderr
