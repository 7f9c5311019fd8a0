"""Committed results: valid, and every table is what its records give today."""

from pathlib import Path

import pytest

from mim_bench import render, table, validate

RESULTS = Path(__file__).parent.parent / "results"
FOLDERS = sorted(folder.parent for folder in RESULTS.glob("*/*/records"))


def test_there_are_results():
    assert RESULTS / "targets" / "tiny" in FOLDERS


def test_results__are_valid():
    assert validate.validate(RESULTS)[1] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_table__is_what_the_records_give(folder):
    made = table.build(folder.parent.name, folder.name, RESULTS)
    again = f"python -m mim_bench table {made.name} --preset {made.preset}"
    for file, text in (("table.md", render.markdown(made)), ("table.csv", render.csv(made)),
                       ("table.tex", render.tex(made))):  # fmt: skip
        assert (folder / file).read_text() == text, f"{file} is out of date: {again}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_records__were_made_by_committed_code_on_all_of_the_data(folder):
    made = table.build(folder.parent.name, folder.name, RESULTS)
    for record in made.records:
        assert not record.code.dirty, record.run_id
        assert record.pretrain is None or not (record.pretrain.code and record.pretrain.code.dirty)
        assert not record.data.limited and record.data.split == "test"
