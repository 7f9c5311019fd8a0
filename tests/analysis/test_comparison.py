"""Rows against one another in the report: what is bracketed, what is drawn beside them."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from fake import fake_results

from mim_bench.analysis import difference, table
from mim_bench.analysis.difference import Difference
from mim_bench.analysis.report import comparison, drawing
from mim_bench.analysis.report.drawing import Dots, dot_plot
from mim_bench.analysis.table import CONTROL, Table
from mim_bench.records.store import home


def pair(p: float) -> Difference:
    return Difference(0.01, 0.0, 0.02, 0.005, 3, p, 9, 0.014)


def pairs_of(order: str, separated: set[str]) -> dict[tuple[str, str], Difference]:
    return {(a, b): pair(0.001 if a + b in separated else 0.5) for a, b in combinations(order, 2)}


def built(folder: Path, spread: float = 0.1) -> Table:
    fake_results("targets", "small", folder, spread=spread)
    return table.build("targets", "small", folder)


@pytest.mark.parametrize(("spread", "groups"), [(0.0, [[0, 1, 2, 3]]), (0.25, [])])
def test_groups__of_a_table(tmp_path: Path, spread: float, groups: list[list[int]]) -> None:
    made = built(tmp_path, spread)
    correct = {
        label: row.correctness("linear")
        for label, row in made.by_label.items()
        if not row.is_baseline and row.values("linear")
    }
    order = sorted(correct, key=lambda label: -made.row(label).values["linear"].mean)
    assert comparison._groups(order, difference.all_pairs(correct)) == groups


def test_groups__pass_over_the_one_row_that_differs() -> None:
    """`mask_ratio`: of 28 pairs one can be separated, so the first row belongs with all others but one."""
    assert comparison._groups("abcd", pairs_of("abcd", {"ab"})) == [[0, 2, 3], [1, 2, 3]]


def test_groups__are_the_maximal_sets_without_a_separated_pair() -> None:
    order, generator = "abcdefgh", np.random.default_rng(0)
    for share in (0.1, 0.4, 0.8):
        separated = {a + b for a, b in combinations(order, 2) if generator.random() < share}
        alike = [
            set(group)
            for size in range(2, 9)
            for group in combinations(range(8), size)
            if not any(order[a] + order[b] in separated for a, b in combinations(group, 2))
        ]
        maximal = [group for group in alike if not any(group < other for other in alike)]
        groups = comparison._groups(order, pairs_of(order, separated))
        assert sorted(groups) == sorted(sorted(group) for group in maximal)
        assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)


def test_brackets__have_a_dot_at_each_member_and_none_where_they_pass() -> None:
    rows = [Dots(name, 50.0 - place, None, (), place, False) for place, name in enumerate("abcd")]
    drawn = str(dot_plot(rows, {}, [[0, 2, 3]]))
    for shape in drawn.split("</svg>")[:2]:
        heights = re.findall(r"translate\([\d.]+ ([\d.]+)\)", shape)
        members = re.findall(r'class="member" cx="[\d.]+" cy="([\d.]+)"', shape)
        assert members == [heights[0], heights[2], heights[3]]


def test_brackets__that_are_left_out_are_counted() -> None:
    assert "2 more have none" in comparison._without_bracket([[0, 1]] * 8)
    assert comparison._without_bracket([[0, 1]] * 6) == ""


def test_levels__of_the_targets_as_features_the_best_is_there(tmp_path: Path) -> None:
    fake_results("all_targets", "tiny", tmp_path, seeds=(0,))
    made = table.build("all_targets", "tiny", tmp_path)
    features = {
        label: 100 * made.row(label).values["knn"].mean
        for label, row in made.by_label.items()
        if row.is_baseline and not row.is_fixed_image and label != CONTROL
    }
    levels = comparison._levels(made, "knn")
    assert len(features) > 20
    drawn = {name: value for name, value in levels.items() if name.endswith("as a feature")}
    assert drawn == {label: features[label] for label in drawn}
    assert list(drawn.values()) == [max(features.values())]
    assert {"raw pixels", "PCA"} <= levels.keys()


def test_level_names__stand_apart_inside_the_drawing() -> None:
    at = {"PCA": 300.0, "raw pixels": 325.0, "random weights": 360.0, "hog as a feature": 365.0,
          "first": 2.0, "last": 757.0}  # fmt: skip
    places = drawing._level_places(at, 760)
    spans = {
        name: (start, start + drawing._LETTER * drawing._SMALL * len(name), line)
        for name, (start, line) in places.items()
    }
    assert all(start >= 0 and end <= 760.1 for start, end, _ in spans.values())
    for one, other in combinations(spans.values(), 2):
        assert one[2] != other[2] or one[1] + 8 < other[0] or other[1] + 8 < one[0]


def test_ranks__a_row_without_a_record_has_no_place(tmp_path: Path) -> None:
    fake_results("targets", "small", tmp_path)
    for path in (home("targets", "small", tmp_path) / "records").glob("*__scratch*"):
        path.unlink()
    made = table.build("targets", "small", tmp_path)
    assert "scratch" in made.by_label
    drawn = str(comparison.ranks(made, comparison.comparisons(made, {}), {}))
    assert "scratch" not in drawn and drawn.count("<polyline") == 4
    lowest = max(float(y) for y in re.findall(r"translate\([\d.]+ ([\d.]+)\)", drawn))
    first = min(float(y) for y in re.findall(r'soft middle small" x="[\d.]+" y="([\d.]+)"', drawn))
    assert first - lowest < 1.5 * drawing._ROW
