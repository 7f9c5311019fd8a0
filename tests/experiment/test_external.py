"""Encoders from outside under the protocols: their own features, records of their own division."""

import hashlib
import json

import pytest
import timm
import torch
from timm.models.beit import Beit

from mim_bench.analysis import external, render, write
from mim_bench.analysis import table as tables
from mim_bench.analysis.external import external_grid, external_rows
from mim_bench.analysis.published.rows import rows
from mim_bench.analysis.report.page import write_report
from mim_bench.analysis.validate import validate
from mim_bench.config.cells import cells
from mim_bench.data.run_data import complete, open_data
from mim_bench.errors import UserError
from mim_bench.evaluate.encoders.named import open_named
from mim_bench.experiment.external import ExternalFeatures, evaluate_encoder, open_any, prepare
from mim_bench.experiment.run import execute
from mim_bench.records import record, store
from mim_bench.records.measure import measures
from mim_bench.records.run_folder import record_path

SHAPE = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 0,
}
FEW = ["data.limit_images=120", "evaluate.protocols=knn", "runtime.device=cpu"]


@pytest.fixture
def saved(tmp_path):
    """A file of weights saved by timm, and timm's model."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SHAPE).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "vit.pth")
    return tmp_path / "vit.pth", model


def test_timm_file__reaches_the_features_of_timm_itself(saved, small):
    path, model = saved
    config = small("pixel", "runtime.precision=float32")
    data = open_data(config, torch.device("cpu"))
    loaded = open_any(str(path), num_heads=3)
    features = ExternalFeatures(
        complete(config, data), data, loaded, loaded.encoder, torch.device("cpu"), ("last/cls", "last/patch_mean"),
    )  # fmt: skip
    grey = torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (loaded.mean, loaded.std))
    with torch.no_grad():
        tokens = model.forward_features((grey.expand(-1, 3, -1, -1) / 255 - mean) / std)
    got = features.encode(grey)
    torch.testing.assert_close(got[:, 0], tokens[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[:, 1], tokens[:, 1:].mean(1), atol=1e-5, rtol=1e-5)


def test_record__says_what_was_evaluated_and_joins_no_closed_table(saved, tmp_path):
    path, _ = saved
    done = evaluate_encoder(str(path), "tiny", FEW, num_heads=3, out=tmp_path / "out")
    (found,) = done.records
    assert found.external is not None and found.external.division == "external"
    assert (
        found.external.family == "ViT of timm's names"
        and "0 missing, 0 unexpected" in found.external.conversion
    )
    assert found.external.mean[0] == 0.485 and found.control and found.pretrain is None
    written = record_path(done.folder, "knn")
    assert record.read(written) == found
    record.check_correct(written, found)

    cell = cells("targets", "tiny")[0]
    forged = found.model_copy(
        update={"config": cell.config.model_dump(mode="json"), "target": cell.config.target.name}
    )
    for one in (found, forged):
        assert store.find([cell], [(written, one)]) == ([], [written])
    plain = forged.model_copy(update={"external": None})
    assert store.find([cell], [(written, plain)])[0]  # only its division kept it out


def test_second_call__reads_back_and_another_file_is_another_record(saved, tmp_path):
    path, model = saved
    first = evaluate_encoder(str(path), "tiny", FEW, num_heads=3, out=tmp_path / "out")
    again = evaluate_encoder(str(path), "tiny", FEW, num_heads=3, out=tmp_path / "out")
    assert again.records == first.records and again.folder == first.folder
    torch.save({k: 2 * v for k, v in model.state_dict().items()}, path)
    other = evaluate_encoder(str(path), "tiny", FEW, num_heads=3, out=tmp_path / "out")
    assert other.folder != first.folder


def test_own_run__has_the_numbers_of_its_own_record(small, tmp_path):
    tuned = ["finetune.epochs=1", "finetune.batch_size=40", "evaluate.protocols=knn,finetune"]
    run = execute(small("hog", *tuned), out=tmp_path / "runs")
    done = evaluate_encoder(str(run.folder), "tiny", [*FEW, *tuned], out=tmp_path / "out")
    assert [record.metrics for record in done.records] == [record.metrics for record in run.records]
    assert done.records[0].external and done.records[0].external.statistics_from == "config.json"
    assert "external" not in json.loads(record_path(run.folder, "knn").read_text())


def test_readouts__can_be_every_layer_and_pooling(saved, tmp_path):
    given = [
        *FEW,
        "evaluate.protocols=knn,linear,low_shot",
        "low_shot.num_draws=1",
        "evaluate.pooling=cls",
    ]
    done = evaluate_encoder(str(saved[0]), "tiny", given, num_heads=3, readout="all", out=tmp_path)
    names = {metric.readout for metric in done.records[0].metrics}
    blocks = ("last", "middle", "block1", "block1+norm", "block2")
    assert {f"{layer}/{pooling}" for layer in blocks for pooling in ("cls", "patch_mean")} <= names
    assert "last/cls+patch_mean" in names and "block1+norm/cls+patch_mean" in names
    by_name = {metric.readout: metric.value for metric in done.records[0].metrics}
    assert by_name["middle/cls"] == by_name["block1/cls"]
    assert done.records[0].declared_readout == "last/cls"


def test_all_patches_and_attentive_layers__are_read_where_they_are_named(saved, tmp_path):
    given = [*FEW, "evaluate.protocols=linear,attentive,segment", "attentive.epochs=1", "segment.source=scenes",
             "segment.max_train_images=32", "segment.max_test_images=16"]  # fmt: skip
    names = "block1/patches,block1/attentive"
    done = evaluate_encoder(
        str(saved[0]), "tiny", given, num_heads=3, readout=names, out=tmp_path / "out"
    )
    linear, attentive, segment = done.records
    assert "block1/patches" in {metric.readout for metric in linear.metrics}
    assert not any(metric.readout.endswith("attentive") for metric in linear.metrics)
    assert [m.readout for m in attentive.metrics] == ["last/attentive", "block1/attentive"]
    assert list(measures(attentive)) == ["attentive", "attentive @ block1/attentive"]
    assert len({m.readout for m in attentive.control}) == 2  # random weights are probed alike
    assert [m.readout for m in segment.metrics] == [
        "last/patches",
        "block1/patches",
        "pixels/patches",
    ]
    assert (done.folder / "attentive-block1.jsonl").is_file()
    assert not (done.folder / "attentive-block1").exists()


def test_all_patches__are_the_tokens_in_their_order_and_are_bounded_by_memory(saved):
    ready = prepare(
        str(saved[0]),
        "tiny",
        [*FEW, "runtime.precision=float32"],
        readout="block1/patches",
        num_heads=3,
    )
    features, split = ready.features, ready.data.evaluate
    found = features.of(split, "block1/patches").view(
        split.num_images, -1, ready.config.model.embed_dim
    )
    index = torch.arange(4)
    images = next(iter(split.batches([index], features.crop, device=torch.device("cpu"))))[0]
    x = features.normalize(images.float() / 255)
    with torch.no_grad():
        tokens = features.encoder.blocks[0](
            features.encoder._pos_embed(features.encoder.patch_embed(x))
        )
    assert torch.allclose(found[index], tokens[:, 1:], atol=1e-5)
    small = prepare(
        str(saved[0]),
        "tiny",
        [*FEW, "runtime.memory_gb=0.0001", "runtime.precision=float32"],
        readout="last/patches",
        num_heads=3,
    )
    with pytest.raises(
        UserError, match="readout 'last/patches': .* values are .* GB; runtime.memory_gb="
    ):
        small.features.of(small.data.train, "last/patches")


def test_encoder_without_class_token__is_read_at_its_patches(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", class_token=False, global_pool="avg", fc_norm=False, **SHAPE
    )
    torch.save(model.state_dict(), tmp_path / "w.pth")
    given = [*FEW, "evaluate.protocols=knn,attentive", "attentive.epochs=1"]
    done = evaluate_encoder(str(tmp_path / "w.pth"), "tiny", given, num_heads=3, out=tmp_path)
    assert [m.readout for m in done.records[0].metrics] == ["last/patch_mean", "middle/patch_mean"]
    with pytest.raises(UserError, match="declared readout 'last/cls'; allowed: last/patch_mean"):
        evaluate_encoder(
            str(tmp_path / "w.pth"),
            "tiny",
            [*FEW, "evaluate.pooling=cls"],
            num_heads=3,
            out=tmp_path,
        )


def test_control__is_of_the_same_architecture(tmp_path):
    torch.manual_seed(0)
    shape = SHAPE | {"global_pool": "", "init_values": 0.1, "use_rel_pos_bias": True}
    torch.save(Beit(**shape).state_dict(), tmp_path / "beit.pth")
    torch.save(
        timm.create_model("vit_tiny_patch16_224", **SHAPE).state_dict(), tmp_path / "vit.pth"
    )
    for name in ("beit", "vit"):
        evaluate_encoder(
            str(tmp_path / f"{name}.pth"), "tiny", FEW, num_heads=3, out=tmp_path / "out"
        )
    assert len(list((tmp_path / "out" / "controls").glob("knn-*.npz"))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": ["model.depth=3"]}, "that is the encoder's own"),
        (
            {"overrides": ["evaluate.protocols=speed"]},
            "protocol 'speed' evaluates no encoder; allowed: finetune",
        ),
        ({"readout": "block9/cls"}, "block1 to block2"),
        ({"readout": "last/max"}, "pooling 'max'; allowed: cls, patch_mean"),
        ({"overrides": ["data.mean=0.1,0.2"]}, "2 values, the encoder takes 3 channels"),
        ({"overrides": ["data.image_size=30"], "num_heads": 3}, "30"),
        ({"num_heads": 5}, "num_heads=5: give one that divides the width 48"),
    ],
)
def test_wrong_settings__are_one_line(saved, tmp_path, options, message):
    options = {"num_heads": 3, "overrides": []} | options
    given = [*FEW, *options.pop("overrides")]
    with pytest.raises(UserError, match=message) as error:
        evaluate_encoder(str(saved[0]), "tiny", given, out=tmp_path, **options)
    assert "\n" not in str(error.value)


def test_other_size_and_statistics__are_taken_and_said(saved, tmp_path, caplog):
    given = [*FEW, "data.image_size=48", "data.mean=0.4", "data.std=0.3"]
    done = evaluate_encoder(str(saved[0]), "tiny", given, num_heads=3, out=tmp_path)
    facts = done.records[0].external
    assert facts and facts.mean == (0.4, 0.4, 0.4) and facts.statistics_from == "given"
    assert "position table interpolated from 4 x 4 to 6 x 6 patches" in facts.notes


def test_methods_table__has_it_next_to_what_was_published_of_the_same_weights(
    saved, tmp_path, monkeypatch
):
    path, _ = saved
    given = [*FEW, "evaluate.protocols=knn,linear"]
    done = evaluate_encoder(str(path), "tiny", given, num_heads=3, out=tmp_path / "out")
    kept = store.home("methods", "tiny", tmp_path / "results") / "records"
    store.keep(done.folder, done.records, kept)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    (of_dino,) = [
        row for row in rows(["released_checkpoints"])
        if row.protocol == "knn" and row.checkpoint == "timm:vit_small_patch16_224.dino"
    ]  # fmt: skip
    mine = of_dino.model_copy(update={"checkpoint": f"md5:{md5[:6]}", "value": 60.0})
    other = of_dino.model_copy(update={"checkpoint": "md5:0" + md5[:5], "value": 50.0})
    found = external_rows("methods", "tiny", tmp_path / "results", [other, mine])
    assert [row.measure.name for row in found] == ["linear", "knn"]
    assert [row.published for row in found] == [None, mine]
    cells = external_grid(found).texts[1]
    assert cells[0] == "vit" and cells[7] == "60.0" and cells[8] == "-"
    assert "not ImageNet-1K" in cells[9] and "epochs" not in cells[9]
    monkeypatch.setattr(external, "reasons", lambda row, record: {})
    value = 100 * found[1].measure.value
    assert external_grid(found).texts[1][8].startswith(f"{value - 60:+.1f} [")
    made = tables.build("methods", "tiny", tmp_path / "results")
    assert "| vit |" in render.markdown(made) and write.csv(made).count("vit") >= 2
    assert validate(tmp_path / "results")[1] == []
    assert ">vit<" in write_report(tmp_path / "results").read_text()


def test_methods_table__refuses_the_record_of_a_run(small, tmp_path):
    done = execute(small("pixel", "evaluate.protocols=knn"), out=tmp_path / "runs")
    kept = store.home("methods", "tiny", tmp_path / "results") / "records"
    store.keep(done.folder, done.records, kept)
    with pytest.raises(UserError, match="a run's record; benchmark 'methods' has no runs"):
        tables.build("methods", "tiny", tmp_path / "results")


def test_timm_name__with_a_file_needs_no_network_and_without_says_so(saved, monkeypatch):
    name = "vit_tiny_patch16_224"
    model = timm.create_model(name, num_classes=0)
    torch.save(model.state_dict(), saved[0])
    asked = []
    loaded = open_named(f"timm:{name}@{saved[0]}", notify=asked.append)
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        got = loaded.encoder.eval().forward_features(x)
        torch.testing.assert_close(got, model.eval().forward_features(x))
    assert not asked and loaded.mean == (0.5, 0.5, 0.5)  # augreg's, which no name in the file tells

    def offline(*arguments, pretrained=False, **options):
        if pretrained:
            assert asked, "said before"
            raise ConnectionError("no network\nat all")
        return model

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        UserError,
        match=r"no weights \(no network\); with a local file: timm:vit_tiny_patch16_224@F",
    ):
        open_named(f"timm:{name}", notify=asked.append)
    with pytest.raises(UserError, match="no such model; nearest: vit_tiny_patch16_224"):
        open_named("timm:vit_tinyy_patch16_224")


def test_timm_name__that_is_no_vit_is_refused():
    with pytest.raises(UserError, match="is a ResNet; needed is a ViT"):
        open_named("timm:resnet18@nowhere.pth")
