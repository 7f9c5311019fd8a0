"""Effects of factors: the mean over the other factors of the differences, with an interval that covers."""

import re

import numpy as np
import pytest
from fake import fake_results

from mim_bench.analysis import difference, effects, render, table


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("results")
    fake_results("mask_ratio", "tiny", home, spread=0.2)
    return table.build("mask_ratio", "tiny", home)


def test_effect__is_the_mean_over_the_other_factor_of_the_differences(made):
    found = {one.field: one for one in effects.effects(made.by_label, made.reference, "linear")}
    assert set(found) == {"target", "mask.ratio"}
    of = found["mask.ratio"]
    assert of.others == ("target",) and of.reference not in of.of_level
    for level, one in of.of_level.items():
        pairs = [
            made.row(label).values["linear"].mean
            - made.row(label.replace(f"ratio {level}", f"ratio {of.reference}"))
            .values["linear"]
            .mean
            for label in made.by_label
            if label.endswith(f"ratio {level}")
        ]
        assert one.mean == pytest.approx(np.mean(pairs)) and one.low < one.mean < one.high
    assert (
        "Effect of `mask.ratio` on fine-tune (points, mean over target; against"
        in render.markdown(made)
    )


def test_effect__is_printed_with_an_interval_for_each_level(made):
    (of,) = [
        one
        for one in effects.effects(made.by_label, made.reference, "linear")
        if one.field == "mask.ratio"
    ]
    said = effects.sentence(of, "linear")
    assert len(re.findall(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", said)) == len(of.of_level)


def test_effect__has_a_narrower_interval_than_a_single_pair(made):
    (of,) = [
        one
        for one in effects.effects(made.by_label, made.reference, "linear")
        if one.field == "mask.ratio"
    ]
    level = next(iter(of.of_level))
    target = made.reference.partition(",")[0]
    pair = made.row(f"{target}, ratio {level}").differences["linear"]
    assert of.of_level[level].stderr < pair.stderr


def test_effects__need_every_combination_and_two_factors(made):
    some = dict(made.by_label)
    some.pop(next(label for label in some if label not in (made.reference,)))
    assert effects.effects(some, made.reference, "linear") == []
    one_target = {k: v for k, v in made.by_label.items() if k.startswith("norm_pixel")}
    assert effects.effects(one_target, next(iter(one_target)), "linear") == []


def test_contrast__of_two_rows_is_their_difference():
    generator = np.random.default_rng(0)
    rows = {label: {s: generator.random(500) < 0.6 for s in range(3)} for label in "abc"}
    (one,) = difference.contrasts(rows, {"a": {"a": 1.0, "b": -1.0}}).values()
    other = difference.all_pairs(rows)["a", "b"]
    assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high))
