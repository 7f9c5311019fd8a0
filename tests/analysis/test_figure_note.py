"""Figures: what stands in notes and on axes is what is seen."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from mim_bench.analysis.figures.draw import compose
from mim_bench.analysis.figures.panel import style
from mim_bench.config.benchmark import at_preset, load_benchmark
from mim_bench.records.store import CellRecord, benchmark_records
from tests.fake import fake_results


def found(name: str, folder: Path) -> list[CellRecord]:
    fake_results(name, "tiny", folder)
    return benchmark_records(name, "tiny", folder)


def drawn(name: str, entries: Sequence[CellRecord]) -> dict[str, Figure]:
    with style():
        return compose(at_preset(load_benchmark(name), "tiny"), entries)


def note(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def with_control(entry: CellRecord, of_seed: Sequence[float]) -> CellRecord:
    """Random weights are the same for every row of a seed."""
    control = [
        metric.model_copy(update={"value": of_seed[entry.record.seed]})
        for metric in entry.record.control
    ]
    return replace(entry, record=entry.record.model_copy(update={"control": tuple(control)}))


def test_control__is_one_level_though_seeds_are_missing_along_the_grid(tmp_path: Path) -> None:
    of_seed = (0.42, 0.43, 0.45)
    entries = [
        with_control(entry, of_seed)
        for entry in found("mask_ratio", tmp_path)
        if entry.record.seed == 0 or entry.cell.point["mask.ratio"] == 0.75
    ]
    linear = drawn("mask_ratio", entries)["figure"].axes[2]
    (line,) = [line for line in linear.lines if str(line.get_label()).startswith("random init")]
    mean = 100 * np.mean(of_seed)
    assert np.asarray(line.get_ydata(), float) == pytest.approx(mean)
    half = 100 * stats.sem(of_seed) * stats.t.ppf(0.975, 2)
    assert line.get_label() == f"random init {mean:.1f} ± {half:.1f}"
    assert f"random init {mean:.1f} ± {half:.1f}" in [text.get_text() for text in linear.texts]


def test_control__that_differs_within_a_seed_is_no_level(tmp_path: Path) -> None:
    linear = drawn("mask_ratio", found("mask_ratio", tmp_path))["figure"].axes[2]
    assert not [line for line in linear.lines if str(line.get_label()).startswith("random")]


def test_ticks__the_published_peak_is_named(tmp_path: Path) -> None:
    published = drawn("mask_ratio", found("mask_ratio", tmp_path))["figure"].axes[3]
    names = [text.get_text() for text in published.get_xticklabels()]
    assert "0.75" in names and "0.9" in names and "" in names


def test_note__bars_across_only_where_there_are_some(tmp_path: Path) -> None:
    entries = found("targets", tmp_path)
    assert "Bars across" not in note(drawn("targets", entries)["compute"])
    uneven = [
        replace(entry, record=entry.record.model_copy(update={"pretrain": facts}))
        for entry in entries
        if (facts := entry.record.pretrain)
        and (facts := facts.model_copy(update={"flops": facts.flops * (1 + entry.record.seed)}))
    ]
    assert "Bars across" in note(drawn("targets", uneven)["compute"])


@pytest.mark.parametrize(("highest", "is_cut"), [(1.2, False), (9.0, True)])
def test_note__says_where_losses_are_cut(tmp_path: Path, highest: float, is_cut: bool) -> None:
    entries = [
        replace(entry, record=entry.record.model_copy(update={"pretrain": facts}))
        for entry in found("targets", tmp_path)
        if (facts := entry.record.pretrain)
        and (
            facts := facts.model_copy(
                update={"gate": {"mean_loss": 1.0}, "epoch_losses": ((1, highest), (2, 0.5))}
            )
        )
    ]
    figure = drawn("targets", entries)["curves"]
    assert ("cut off" in note(figure)) == is_cut
    assert (figure.axes[0].get_ylim()[1] < highest) == is_cut


def test_curves__of_more_rows_than_colours_all_differ_and_agree_with_the_scatter(
    tmp_path: Path,
) -> None:
    figures = drawn("all_targets", found("all_targets", tmp_path))
    looks = {}
    for line in figures["curves"].axes[0].lines:
        looks[str(line.get_label())] = (line.get_color(), str(line._dash_pattern))  # pyright: ignore
    assert len(looks) == len(set(looks.values())) == 26
    points = {
        str(line.get_label()): (line.get_color(), line.get_marker())
        for line in figures["compute"].axes[0].lines
        if str(line.get_label()) in looks
    }
    assert len(points) == len(set(points.values())) == 26
    assert {label: color for label, (color, _) in points.items()} == {
        label: color for label, (color, _) in looks.items()
    }
