"""The analysis of variance against a hand-computed table, textbook formulae, and made-up records."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake import fake_results
from scipy import stats

from mim_bench.analysis.effects import (
    METHOD,
    REST,
    Effect,
    against_seed,
    analyse,
    grid,
    sentence,
    sums_of_squares,
)
from mim_bench.config.benchmark import cells
from mim_bench.errors import UserError
from mim_bench.records.store import benchmark_records, home


def test_sums_of_squares__hand_computed() -> None:
    # target a: 1, 3 (mean 2); b: 5, 9 (mean 7); grand mean 4.5; seeds' means 3 and 6
    values = np.array([[1.0, 3.0], [5.0, 9.0]])
    found = sums_of_squares(values, ["target", "seed"])
    # 2 * (2.5^2 + 2.5^2) = 25; 2 * (1.5^2 + 1.5^2) = 9; total 12.25 + 2.25 + 0.25 + 20.25 = 35
    assert found == pytest.approx({"target": 25.0, "seed": 9.0, REST: 1.0})


def test_sums_of_squares__loops_say_the_same() -> None:
    values = np.random.default_rng(0).normal(size=(4, 5, 2, 3))
    found = sums_of_squares(values, ["a", "b", "c", "d"])
    grand = values.mean()
    for axis, factor in enumerate("abcd"):
        total = 0.0
        for place in itertools.product(*map(range, values.shape)):
            total += (np.take(values, place[axis], axis=axis).mean() - grand) ** 2
        assert found[factor] == pytest.approx(total)
        level_means = [np.take(values, k, axis=axis).mean() for k in range(values.shape[axis])]
        assert np.sqrt(found[factor] / values.size) == pytest.approx(np.std(level_means))
    assert sum(found.values()) == pytest.approx(values.size * values.var())


def test_against_seed__of_two_levels_is_the_paired_t_test() -> None:
    values = np.random.default_rng(1).normal(size=(2, 3, 5))
    _, p = against_seed(values, 0)
    means = values.mean(axis=1)
    assert p == pytest.approx(stats.ttest_rel(means[0], means[1]).pvalue)


def test_against_seed__is_what_chance_gives() -> None:
    # noise of a run is shared by its readouts, which a test against the rest would take for an effect
    generator = np.random.default_rng(2)
    effect, expected, rejected = [], [], []
    for _ in range(2000):
        values = generator.normal(size=(4, 1, 3)) + 0.1 * generator.normal(size=(4, 4, 3))
        chance, p = against_seed(values, 0)
        effect.append(sums_of_squares(values, ["target", "readout", "seed"])["target"])
        expected.append(chance)
        rejected.append(p is not None and p < 0.05)
    wanted = 3 * (
        4 * 1.0 + 0.01
    )  # degrees of freedom times the variance of a target's mean, scaled
    assert np.mean(expected) == pytest.approx(wanted, rel=0.05)
    assert np.mean(effect) == pytest.approx(wanted, rel=0.05)
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.015)


def test_against_seed__without_noise() -> None:
    assert against_seed(np.array([[1.0, 1.0], [2.0, 2.0]]), 0) == (0.0, 0.0)
    assert against_seed(np.ones((2, 2)), 0) == (0.0, None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    fake_results("targets", "tiny", results)
    fake_results("mask_ratio", "tiny", results)
    return results


@pytest.fixture(scope="module")
def effects(made: Path) -> list[Effect]:
    return analyse(made, "tiny")


def test_analyse__factors_cells_and_shares(effects: list[Effect]) -> None:
    groups: dict[tuple[str, str], list[Effect]] = {}
    for one in effects:
        groups.setdefault((one.benchmark, one.measure), []).append(one)
    ratios = len({cell.point["mask.ratio"] for cell in cells("mask_ratio", "tiny")})
    wanted = {
        ("targets", "fine-tune"): ({"target": 4, "seed": 3}, 12),
        ("targets", "linear"): ({"target": 4, "readout": 4, "seed": 3}, 48),
        ("targets", "kNN"): ({"target": 4, "readout": 4, "seed": 3}, 48),
        ("mask_ratio", "fine-tune"): ({"target": 2, "mask ratio": ratios, "seed": 3}, 6 * ratios),
        ("mask_ratio", "linear"): (
            {"target": 2, "mask ratio": ratios, "readout": 4, "seed": 3},
            24 * ratios,
        ),
    }
    assert set(groups) == set(wanted)
    for key, (levels, num_cells) in wanted.items():
        group = groups[key]
        assert {one.factor: one.num_levels for one in group} == levels | {REST: None}
        assert {one.num_cells for one in group} == {num_cells}
        assert sum(one.share for one in group) == pytest.approx(1)


def test_analyse__numbers_are_those_of_the_records(made: Path, effects: list[Effect]) -> None:
    mean: dict[str, list[float]] = {}
    for one in benchmark_records("targets", "tiny", made):
        if one.record.protocol == "linear":
            mean.setdefault(one.record.target, []).extend(m.value for m in one.record.metrics)
    found = next(e for e in effects if (e.measure, e.factor) == ("linear", "target"))
    assert found.points == pytest.approx(100 * np.std([np.mean(each) for each in mean.values()]))


def _remove(results: Path, protocol: str, seed: int, target: str) -> None:
    found = list(
        (home("targets", "tiny", results) / "records").glob(f"{target}-*__{protocol}.json")
    )
    chosen = [path for path in found if f'"seed": {seed},' in path.read_text()]
    assert len(chosen) == 1
    chosen[0].unlink()


def test_analyse__leaves_out_incomplete_seeds_of_that_measure_alone(tmp_path: Path) -> None:
    fake_results("targets", "tiny", tmp_path)
    _remove(tmp_path, "linear", 1, "hog")
    found = {one.measure: one for one in analyse(tmp_path, "tiny") if one.factor == "target"}
    assert {key: (one.num_cells, one.num_seeds) for key, one in found.items()} == {
        "fine-tune": (12, 3), "linear": (32, 2), "kNN": (48, 3),
    }  # fmt: skip


def test_analyse__one_seed(tmp_path: Path) -> None:
    fake_results("targets", "tiny", tmp_path, seeds=(0,))
    effects = analyse(tmp_path, "tiny")
    # of fine-tuning there is one factor left, which would explain everything
    assert {(one.measure, one.factor) for one in effects} == {
        (measure, factor) for measure in ("linear", "kNN") for factor in ("target", "readout", REST)
    }
    assert all(one.by_chance is None and one.p is None for one in effects)
    assert "with one seed the target cannot be told from chance" in sentence(effects)


def test_analyse__nothing_complete(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sweep targets --preset tiny"):
        analyse(tmp_path, "tiny")
    fake_results("targets", "tiny", tmp_path)
    for protocol, seed in itertools.product(("linear", "knn", "finetune"), range(3)):
        _remove(tmp_path, protocol, seed, "dvae")
    with pytest.raises(UserError, match="has every cell"):
        analyse(tmp_path, "tiny")


def test_grid__one_row_an_effect(effects: list[Effect]) -> None:
    headings, lines = grid(effects).headings, grid(effects).texts
    assert len(lines) == len(effects) and {len(line) for line in lines} == {len(headings)}
    for one, line in zip(effects, lines, strict=True):
        assert line[0] == f"{one.benchmark}, {one.measure}" and line[1] == one.factor
        assert float(line[2]) == pytest.approx(100 * one.share, abs=0.05)


def _group(measure: str, p: float | None, **shares: float) -> list[Effect]:
    shares |= {REST: 1 - sum(shares.values())}
    return [
        Effect("targets", "tiny", measure, factor, share, 100 * share, num_seeds=3,
               p=p if factor == "target" else None, by_chance=0.125 if factor == "target" else None)
        for factor, share in shares.items()
    ]  # fmt: skip


def test_sentence__says_what_the_numbers_say() -> None:
    leads = _group("fine-tune", 0.01, target=0.6, seed=0.1)
    follows = _group("linear", 0.01, target=0.2, readout=0.5, seed=0.03)
    noise = _group("linear", 0.3, target=0.2, readout=0.1, seed=0.05)
    assert sentence(leads) == (
        "At preset tiny the target matters more than any other factor: it explains 60 % of the spread of "
        "fine-tune accuracy (60.0 points; seed 10 %)."
    )
    assert sentence(follows) == (
        "At preset tiny the target matters, but less than the readout: it explains 20 % of the spread of linear "
        "accuracy (20.0 points; readout 50 %, seed 3 %)."
    )
    assert sentence(noise) == (
        "At preset tiny the target cannot be told from chance: it explains 20 % of the spread of linear accuracy "
        "(20.0 points; chance alone 12 %, readout 10 %, seed 5 %)."
    )
    varied = [
        replace(one, factor=one.factor.replace("readout", "mask ratio"), benchmark="mask_ratio")
        for one in noise
    ]
    assert sentence([*leads, *follows, *varied]) == (
        "At preset tiny how much the target matters depends on the comparison: it explains 60 % of the spread of "
        "fine-tune accuracy (60.0 points, the most; seed 10 %), 20 % of linear (20.0 points, behind the readout; "
        "readout 50 %, seed 3 %) and 20 % of linear over mask ratios (20.0 points, not beyond chance; "
        "chance alone 12 %, mask ratio 10 %, seed 5 %)."
    )
    knn = _group("kNN", 0.01, target=0.9)
    assert "kNN" not in sentence([*leads, *knn]) and "kNN" in sentence(knn)


def test_sentence__of_records(tmp_path: Path) -> None:
    fake_results("targets", "tiny", tmp_path / "apart", spread=0.3)
    assert "the target matters more than any other factor" in sentence(
        analyse(tmp_path / "apart", "tiny")
    )
    fake_results("targets", "tiny", tmp_path / "alike", spread=0.0)
    assert "the target cannot be told from chance" in sentence(analyse(tmp_path / "alike", "tiny"))


def test_effect__stale_records_are_named(effects: list[Effect]) -> None:
    stale = [replace(one, is_stale=True) for one in effects]
    assert all("(stale)" in line[0] for line in grid(stale).texts)
    assert sentence(stale).endswith("(from stale records).")
    assert METHOD
