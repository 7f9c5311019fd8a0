"""Records: written and read through one schema, refused when damaged or foreign, complete."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mim_bench.data.run_data import open_data
from mim_bench.data.split import Split
from mim_bench.errors import UserError
from mim_bench.evaluate.features import READOUTS
from mim_bench.experiment.run import execute
from mim_bench.records import record
from mim_bench.records.run_folder import read_config, record_hash, record_path
from mim_bench.train.pretrain import first_batches_hash


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from conftest import SMALL

    from mim_bench.config.resolve import load_config

    config = load_config(
        "hog", "tiny", [*SMALL, "evaluate.protocols=knn,linear,finetune,scratch,speed"]
    )
    return execute(config, out=tmp_path_factory.mktemp("runs"), command="test")


def test_record__carries_its_proof(finished):
    for found in finished.records:
        assert found.code.commit and found.versions["torch"] and found.device.kind == "cpu"
        assert (found.pretrain is None) == (found.protocol in ("scratch", "speed"))
        if found.pretrain is not None:
            assert found.pretrain.images_seen == 3 * 120
            assert found.pretrain.epoch_losses == ((3, found.pretrain.final_loss),)
            assert len(found.pretrain.first_batches) == 64
        assert found.data.num_train_images == 120 and found.data.limited
        assert len(found.data.fingerprint) == 64
        assert found.config["pretrain"]["epochs"] == 3
        assert found.config["data"]["image_size"] == [32, 32]
        assert found.seconds > 0 and found.command == "test"


def test_manifest__has_the_hash_of_the_first_batches(finished):
    config = read_config(finished.folder)
    data = open_data(config, torch.device("cpu"))
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    expected = first_batches_hash(config, data)
    assert manifest["first_batches"] == expected
    assert {r.pretrain.first_batches for r in finished.records if r.pretrain} == {expected}


@pytest.mark.parametrize("name", ["train", "test"])
def test_fingerprint__covers_the_images_of_every_split(small, monkeypatch, name):
    config, own = small("pixel"), Split.fingerprint.fget
    before = open_data(config, torch.device("cpu")).facts.fingerprint
    changed = property(lambda self: own(self) + "changed" * (self.name == name))
    monkeypatch.setattr(Split, "fingerprint", changed)
    assert open_data(config, torch.device("cpu")).facts.fingerprint != before


def test_frozen_protocols__report_every_readout_and_a_control(finished):
    for found in finished.records:
        if found.protocol in ("knn", "linear"):
            assert [m.readout for m in found.metrics] == list(READOUTS)
            assert [m.readout for m in found.control] == list(READOUTS)
            assert found.declared_readout == "last/patch_mean"
        elif found.protocol != "speed":
            names = ["top1"] + ["train_flops"] * (found.protocol == "scratch")
            assert [(m.name, m.readout) for m in found.metrics] == [(n, "model") for n in names]
            assert found.control == ()


def test_per_image_correctness__agrees_with_the_metric(finished):
    for found in finished.records:
        correct = record.read_correct(record_path(finished.folder, found.protocol))
        if found.protocol == "speed":
            assert correct == {} and all(metric.name != "top1" for metric in found.metrics)
            continue
        for metric in found.metrics:
            if metric.name == "train_flops":
                continue
            assert len(correct[metric.readout]) == metric.n == 120
            assert correct[metric.readout].mean() == pytest.approx(metric.value)
            expected = np.sqrt(metric.value * (1 - metric.value) / metric.n)
            assert metric.stderr == pytest.approx(expected)


def test_control__is_the_same_for_every_target(small, finished, tmp_path):
    other = execute(small("pixel"), out=tmp_path)
    for mine, theirs in zip(finished.records[:2], other.records, strict=True):
        assert mine.control == theirs.control


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:200],
        lambda text: text.replace('"mim_bench.record.1"', '"mim_bench.record.99"'),
        lambda text: text.replace('"seed"', '"sead"'),
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "metrics": []}),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "code"}),
    ],
)
def test_damaged_record__is_refused_by_name(finished, tmp_path, damage):
    text = record_path(finished.folder, "knn").read_text()
    path = tmp_path / "knn.json"
    path.write_text(damage(text))
    with pytest.raises(UserError, match=r"knn\.json (is no|is damaged|was changed)"):
        record.read(path)


def test_correctness_of_another_record__is_refused(finished, tmp_path):
    source = record_path(finished.folder, "knn")
    (tmp_path / "knn.json").write_bytes(source.read_bytes())
    with np.load(source.with_suffix(".npz")) as file:
        flipped = {key: ~file[key] for key in file.files}
    np.savez(tmp_path / "knn.npz", **flipped)
    with pytest.raises(UserError, match="its sha256 differs"):
        record.read_correct(tmp_path / "knn.json")


def test_metric__is_a_fraction():
    with pytest.raises(ValidationError):
        record.Metric(name="top1", readout="model", value=83.6, stderr=0, n=1)


def test_record_hash__follows_the_protocols_own_settings(small):
    base = small("pixel")
    assert record_hash(base, "knn") == record_hash(small("pixel", "linear.epochs=9"), "knn")
    assert record_hash(base, "linear") != record_hash(small("pixel", "linear.epochs=9"), "linear")
    assert record_hash(base, "knn") != record_hash(small("pixel", "seed=1"), "knn")
    assert record_hash(base, "finetune") != record_hash(base, "scratch")
