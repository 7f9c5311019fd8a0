"""Committed results: valid, and every table and picture is what its records give today."""

from pathlib import Path

import pytest

from mim_bench.analysis import render, table, validate, write
from mim_bench.analysis.figures import diagnose
from mim_bench.config.cells import cells
from mim_bench.records import finished, png_stamp, store

RESULTS = Path(__file__).parent.parent / "results"
FOLDERS = sorted(folder.parent for folder in RESULTS.glob("*/*/records"))
PICTURES = sorted(RESULTS.glob("*/*/*.png"))


def test_there_are_results():
    assert RESULTS / "targets" / "tiny" in FOLDERS


def test_results__are_valid():
    assert validate.validate(RESULTS)[1] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_table__is_what_the_records_give(folder):
    made = table.build(folder.parent.name, folder.name, RESULTS)
    again = f"python -m mim_bench table {made.name} --preset {made.preset}"
    for file, text in (("table.md", render.markdown(made)), ("table.csv", write.csv(made)),
                       ("table.tex", write.tex(made))):  # fmt: skip
        assert (folder / file).read_text() == text, f"{file} is out of date: {again}"


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: "/".join(path.parts[-3:]))
def test_picture__was_drawn_from_the_records(path):
    name, preset = path.parts[-3:-1]
    found = store.benchmark_records(name, preset, RESULTS)
    if path.stem in ("pictures", "ratios"):
        shown = {(cell.label, cell.config.seed) for cell in finished.pictured(cells(name, preset))}
        drawn = [one for one in found if (one.cell.label, one.record.seed) in shown]
        expected = png_stamp.of_runs(one.record.run_hash for one in drawn)
    elif path.stem == "similarity":
        expected = png_stamp.of_runs(one.record.run_hash for one in found if one.record.pretrain)
    else:
        expected = png_stamp.of_records(one.record for one in found)
    verb = "similarity" if path.stem == "similarity" else "figure"
    again = f"python -m mim_bench {verb} {name} --preset {preset}"
    assert png_stamp.read(path) == expected, f"{path.name} is out of date: {again}"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("diagnose/*.csv")), ids=lambda path: path.stem)
def test_figure_of_diagnoses__was_drawn_from_them_and_the_encoders_there_are(path):
    again = f"python -m mim_bench figure targets --preset {path.stem}"
    expected = diagnose.stamp(path, path.stem, RESULTS)
    assert png_stamp.read(path.with_suffix(".png")) == expected, f"out of date: {again}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_records__were_made_by_committed_code_on_all_of_the_data(folder):
    made = table.build(folder.parent.name, folder.name, RESULTS)
    for record in made.records:
        assert not record.code.dirty, record.run_id
        assert record.pretrain is None or not (record.pretrain.code and record.pretrain.code.dirty)
        split = "tune" if folder.parent.name == "learning_rate" else "test"
        assert not record.data.limited and record.data.split == split
