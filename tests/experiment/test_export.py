"""Exported encoders, opened by the libraries they are for: the run's own features on the same images."""

import json

import numpy as np
import pytest
import timm
import torch

from mim_bench.errors import UserError
from mim_bench.evaluate.load_encoder import load_encoder, open_encoder
from mim_bench.experiment.export import export_run
from mim_bench.experiment.run import execute

LEVELS = torch.randint(
    256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of seconds, with records."""
    from conftest import SMALL

    from mim_bench.config.resolve import load_config

    given = [
        *SMALL,
        "evaluate.protocols=knn,baselines",
        "model.position=learned",
        "linear.solver=lbfgs",
    ]
    return execute(load_config("norm_pixel", "tiny", given), out=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def normalised(run):
    """The images as the run's encoder takes them."""
    data = json.loads((run.folder / "config.json").read_text())["data"]
    return (LEVELS / 255 - data["mean"][0]) / data["std"][0]


@pytest.fixture(scope="module")
def own(run, normalised):
    """The run's own tokens."""
    with torch.no_grad():
        return load_encoder(run.folder).eval().forward_features(normalised)


def test_timm__opens_it_by_folder_and_by_checkpoint_path(run, normalised, own, tmp_path):
    written = export_run(run.folder, "timm", tmp_path / "out")
    assert [path.name for path in written] == ["config.json", "README.md", "model.safetensors"]
    by_folder = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert tuple(by_folder.pretrained_cfg["mean"]) == open_encoder(tmp_path / "out").mean
    shape = json.loads((tmp_path / "out" / "config.json").read_text())["model_args"]
    by_path = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, checkpoint_path=str(written[-1]), **shape
    )
    for model in (by_folder, by_path):
        with torch.no_grad():
            got = model.eval().forward_features(normalised)
        torch.testing.assert_close(got, own, atol=1e-5, rtol=0)


def test_transformers__opens_it_and_its_processor_normalises_as_we_do(
    run, normalised, own, tmp_path
):
    transformers = pytest.importorskip("transformers")
    export_run(run.folder, "hf", tmp_path / "out")
    model, info = transformers.ViTModel.from_pretrained(
        tmp_path / "out", add_pooling_layer=False, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        got = model.eval()(normalised).last_hidden_state
    torch.testing.assert_close(got, own, atol=1e-5, rtol=0)
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path / "out")
    grey = LEVELS.permute(0, 2, 3, 1).numpy()
    made = processor(list(grey), return_tensors="np", input_data_format="channels_last")
    np.testing.assert_allclose(made["pixel_values"], normalised.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["timm", "hf", "safetensors"])
def test_own_export__comes_back_with_equal_features(run, normalised, own, tmp_path, kind):
    export_run(run.folder, kind, tmp_path / "out")
    loaded = open_encoder(tmp_path / "out")
    with torch.no_grad():
        got = loaded.encoder.eval().forward_features(normalised)
    torch.testing.assert_close(got, own, atol=1e-5, rtol=0)
    assert loaded.statistics_from and loaded.mean == open_encoder(run.folder).mean


def test_model_card__says_what_it_is_and_what_it_was_measured_at(run, tmp_path):
    export_run(run.folder, "timm", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    knn = next(record for record in run.records if record.protocol == "knn")
    metric = next(m for m in knn.metrics if m.readout == knn.declared_readout)
    half = 1.96 * 100 * metric.stderr
    for text in (
        "norm_pixel", "embedded", knn.code.commit, knn.run_hash, "MIT", "plumbing, no finding",
        f"| knn | {100 * metric.value:.1f} ± {half:.1f} |", "baseline: raw pixels, linear", "One seed",
    ):  # fmt: skip
        assert text in card, text


def test_wrong_exports__are_one_line_and_leave_nothing(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text((run.folder / "config.json").read_text())
    for folder, kind, out, message in (
        (run.folder, "onnx", "new", "format 'onnx'; allowed: timm, hf, safetensors"),
        (run.folder, "timm", "full", "exists and is no empty folder"),
        (tmp_path / "half", "timm", "new", "its pre-training is not finished"),
        (tmp_path, "timm", "new", "is no run folder"),
    ):
        with pytest.raises(UserError, match=message):
            export_run(folder, kind, tmp_path / out)
    assert not (tmp_path / "new").exists() and [p.name for p in (tmp_path / "full").iterdir()] == [
        "x"
    ]
