"""Results: a record that is damaged, renamed, changed by hand or of another benchmark is named and refused."""

import json
import shutil
from dataclasses import replace

import pytest
from fake import fake_record, fake_results

from mim_bench import files
from mim_bench.config import cells
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.resolve import load_config
from mim_bench.config.trainings import fit_batches
from mim_bench.errors import UserError
from mim_bench.records import store
from mim_bench.records.record import write
from mim_bench.records.run_folder import fit_parts


@pytest.fixture
def results(tmp_path):
    fake_results("decoder_depth", "tiny", tmp_path)
    return tmp_path


def first(results):
    return sorted((results / "decoder_depth/tiny/records").glob("*.json"))[0]


def test_every_record__finds_its_cell(results):
    found = store.benchmark_records("decoder_depth", "tiny", results)
    assert len(found) == 21 and all(one.stale == () for one in found)
    for one in found:
        assert one.record.config["model"]["decoder_depth"] == one.cell.point["model.decoder_depth"]
        assert one.record.seed == one.cell.config.seed


def test_frame__has_place_numbers_and_proof(results):
    frame = store.results("decoder_depth", folder=results)
    assert (
        len(frame) == 21 and frame["linear"].notna().sum() == frame["finetune"].notna().sum() == 9
    )
    assert frame["linear"].dropna().between(0, 1).all()
    assert set(frame["model.decoder_depth"]) == {1, 2, 4} and frame["commit"].str.len().eq(40).all()


def test_foreign_record__is_named(results):
    cell = next(c for c in cells.cells("mask_ratio", "tiny") if c.point["mask.ratio"] == 0.85)
    record, correct = fake_record(cell, "linear", 0.7)
    path = first(results).with_name(f"{record.run_id}__linear.json")
    write(path, record, correct)
    with pytest.raises(UserError, match=f"{path.name} is no record of benchmark 'decoder_depth'"):
        store.benchmark_records("decoder_depth", "tiny", results)


def test_record_of_a_protocol_that_is_not_asked_for__is_foreign(results):
    cell = cells.cells("decoder_depth", "tiny")[0]
    record, correct = fake_record(cell, "knn", 0.7)
    write(first(results).with_name(f"{record.run_id}__knn.json"), record, correct)
    with pytest.raises(UserError, match="__knn.json is no record of benchmark"):
        store.benchmark_records("decoder_depth", "tiny", results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["config"]["pretrain"].update(epochs=99), "changed by hand"),
        (lambda c: c["metrics"][0].update(value=0.999), "changed by hand"),
        (lambda c: c.update(protocol="knn"), "changed by hand"),
        (lambda c: c.update(schema_version="x"), "no record of schema"),
    ],
)
def test_changed_record__is_refused(results, change, message):
    path = first(results)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        store.benchmark_records("decoder_depth", "tiny", results)


def test_missing_correctness__is_refused(results):
    first(results).with_suffix(".npz").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        store.benchmark_records("decoder_depth", "tiny", results)


def test_no_records__names_the_command(tmp_path):
    with pytest.raises(UserError, match="`sweep targets --preset tiny --results .* makes them"):
        store.benchmark_records("targets", "tiny", tmp_path)


def test_newer_protocol_or_target__makes_records_stale_but_keeps_them(results, monkeypatch):
    from mim_bench.config.target_params import NormPixelParams

    version = PROTOCOLS["linear"].version + 1
    newer = PROTOCOLS["linear"].model_copy(update={"version": version})
    monkeypatch.setitem(PROTOCOLS, "linear", newer)
    found = store.benchmark_records("decoder_depth", "tiny", results)
    assert {one.record.protocol for one in found if one.stale} == {"linear"}
    monkeypatch.setattr(NormPixelParams, "version", 99)
    found = store.benchmark_records("decoder_depth", "tiny", results)
    assert len(found) == 21 and all("target" in one.stale for one in found)


def test_current_record__takes_the_place_of_a_stale_one(results):
    cell = cells.cells("decoder_depth", "tiny")[0]
    target = cell.config.target.model_copy(update={"version": 0})
    older = replace(cell, config=cell.config.model_copy(update={"target": target}))
    record, correct = fake_record(older, "linear", 0.1)
    write(first(results).with_name(f"{record.run_id}__linear.json"), record, correct)
    found = store.benchmark_records("decoder_depth", "tiny", results)
    assert len(found) == 21 and all(one.stale == () for one in found)
    mine = next(o for o in found if o.cell.config == cell.config and o.record.protocol == "linear")
    mine.path.unlink()
    found = store.benchmark_records("decoder_depth", "tiny", results)
    assert [o.record.run_id for o in found if o.stale] == [record.run_id]


def test_other_place_of_the_same_images__is_the_same_run(tmp_path):
    """`--data parquet:HERE` and `parquet:THERE` name the same images, as the fingerprint says."""
    fake_results("targets", "cifar10", tmp_path)
    assert len(store.benchmark_records("targets", "cifar10", tmp_path)) == 78
    overrides = ["data.source=parquet:elsewhere"]
    found = store.benchmark_records("targets", "cifar10", tmp_path, overrides)
    assert len(found) == 78
    assert not any(store.of_same_data(one.record, one.cell.config) for one in found)


def test_keep__copies_record_and_images(results, tmp_path):
    to = tmp_path / "kept"
    record = store.read_folder(first(results).parent)[0][1]
    store.copy(first(results), record, to)
    assert store.read_folder(to)[0][1] == record
    shutil.rmtree(to)


def test_copy__that_is_cut_off_leaves_nothing_that_looks_like_a_record(
    results, tmp_path, monkeypatch
):
    path = next(results.rglob("*.json"))

    def cut_off(source, target):
        target.write_bytes(source.read_bytes()[:10])
        raise OSError("the disk is full")

    monkeypatch.setattr(files.shutil, "copyfile", cut_off)
    with pytest.raises(UserError, match="the disk is full"):
        store.copy(path, store.read(path), tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []


def test_record_of_a_batch_that_the_data_bounded__is_not_stale(results):
    given = ["linear.batch_size=20000", "pretrain.batch_size=20000"]
    cell = cells.cells("decoder_depth", "tiny", given)[0]
    made = replace(cell, config=fit_batches(cell.config, 10_000))
    assert made.config.linear.batch_size == 10_000
    record, _ = fake_record(made, "linear", 0.7)
    record = record.model_copy(
        update={"data": record.data.model_copy(update={"num_train_images": 10_000})}
    )
    (found,), foreign = store.find([cell], [(first(results), record)])
    assert not foreign and found.stale == ()


def test_fit__is_cached_by_target_data_and_seed_and_by_nothing_else():
    """A tokenizer a seed: with one for all seeds an interval would lack the tokenizer's own variance."""
    fits = [
        fit_parts(load_config("dvae", "tiny", overrides))
        for overrides in (
            [],
            ["seed=1"],
            ["dvae.vocab_size=48"],
            ["mask.ratio=0.75"],
            ["model.depth=3"],
        )
    ]
    assert fits[0] not in fits[1:3]
    assert fits[0] == fits[3] == fits[4]
