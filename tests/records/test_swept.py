"""A folder of results knows what it was swept with, and keeps a benchmark's file that came from outside."""

import pytest
from fake import fake_record

from mim_bench.analysis import table, validate
from mim_bench.analysis.figures import draw
from mim_bench.analysis.report.page import write_report
from mim_bench.config.cells import cells
from mim_bench.errors import UserError
from mim_bench.records import store, swept
from mim_bench.records.record import write

FILE = (
    "title = 'Mine'\ndescription = 'd'\nrebuilds = 'r'\nclaim = 'c'\nseeds = [0, 1]\nprotocols = ['linear']\n"
    "[grid]\ntarget = ['pixel', 'hog']\n"
)
GIVEN = ["pretrain.epochs=3", "runtime.num_workers=1", "benchmark.seeds=0,2"]


def swept_folder(tmp_path):
    """Records of a benchmark from outside, swept with settings."""
    file, results = tmp_path / "mine.toml", tmp_path / "results"
    file.write_text(FILE)
    swept.remember(str(file), "tiny", results, GIVEN)
    for cell in cells(str(file), "tiny", GIVEN):
        record, correct = fake_record(cell, "linear", 0.7)
        write(
            results / "mine" / "tiny" / "records" / f"{record.run_id}__linear.json", record, correct
        )
    file.unlink()
    return results


def test_settings_and_file__are_remembered_by_every_reader(tmp_path):
    results = swept_folder(tmp_path)
    built = table.build("mine", "tiny", results)
    assert [(row.label, row.num_seeds) for row in built.rows if row.num_seeds] == [
        ("pixel", 2),
        ("hog", 2),
    ]
    assert {record.seed for record in built.records} == {0, 2}
    assert all(record.config["pretrain"]["epochs"] == 3 for record in built.records)
    assert draw.draw("mine", "tiny", results)
    warned = []
    assert "Mine" in write_report(results, warned.append).read_text() and not warned
    assert validate.validate(results)[1] == []


def test_sweep_with_other_settings__goes_into_another_folder(tmp_path):
    results, file = swept_folder(tmp_path), tmp_path / "mine.toml"
    file.write_text(FILE)
    with pytest.raises(
        UserError, match=r"with pretrain\.epochs=3, not with none; choose another --results"
    ):
        swept.remember(str(file), "tiny", results, [])
    # what may differ: where it runs, and further seeds
    swept.remember(str(file), "tiny", results, ["pretrain.epochs=3", "benchmark.seeds=1"])
    assert "benchmark.seeds=0,1,2" in swept.recall("mine", "tiny", results).overrides
    swept.remember(str(file), "tiny", results, ["pretrain.epochs=3", "runtime.precision=float32"])
    assert swept.recall("mine", "tiny", results).overrides == ("pretrain.epochs=3",)


def test_damaged_settings__are_named(tmp_path):
    results = swept_folder(tmp_path)
    (store.home("mine", "tiny", results) / "sweep.json").write_text("[")
    with pytest.raises(UserError, match=r"sweep\.json is damaged"):
        table.build("mine", "tiny", results)


def test_preset_from_outside__is_kept_too(tmp_path):
    results, file, preset = tmp_path / "results", tmp_path / "mine.toml", tmp_path / "short.toml"
    file.write_text(FILE)
    preset.write_text(
        "[pretrain]\nepochs = 2\nbatch_size = 64\nwarmup_epochs = 0\n[mask]\nratio = 0.5\n"
    )
    swept.remember(str(file), str(preset), results, [])
    for cell in cells(str(file), str(preset)):
        record, correct = fake_record(cell, "linear", 0.7)
        name = f"{record.run_id}__linear.json"
        write(results / "mine" / "short" / "records" / name, record, correct)
    file.unlink()
    preset.unlink()
    warned = []
    write_report(results, warned.append)
    assert not warned and validate.validate(results)[1] == []
