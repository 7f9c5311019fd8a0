"""Features as Parquet, and reconstructions of one's own images."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mim_bench.data.run_data import complete, open_data
from mim_bench.errors import UserError
from mim_bench.evaluate.context import Features
from mim_bench.evaluate.load_encoder import load_encoder
from mim_bench.evaluate.own_images import reconstruct
from mim_bench.evaluate.reconstruction import draw_picture
from mim_bench.experiment.embed import embed
from mim_bench.experiment.run import execute

CPU = torch.device("cpu")


@pytest.fixture
def run(small, tmp_path):
    """A finished run of seconds, its images not in its folder."""
    return execute(small("norm_pixel", "evaluate.protocols=[]"), out=tmp_path / "runs")


def test_embed__holds_the_runs_own_features_labels_and_names(run, small, tmp_path):
    names = ["last/patch_mean", "block1/cls+patch_mean"]
    given = ["data.limit_images=120", "runtime.device=cpu"]
    rows = embed(str(run.folder), "tiny", given, tmp_path / "f.parquet", readouts=names)
    table = pq.read_table(tmp_path / "f.parquet")
    assert rows == table.num_rows == 240
    assert table.column_names == ["split", "index", "where", "label", "class", *names]

    config = small("norm_pixel")
    data = open_data(config, CPU)
    own = Features(complete(config, data), data, load_encoder(run.folder), CPU, tuple(names))
    for name in names:
        got = np.array(table[name].to_pylist(), dtype=np.float32)
        want = torch.cat([own.of(split, name) for split in (data.train, data.evaluate)])
        np.testing.assert_allclose(got, want.numpy(), atol=1e-6)
    assert table["label"].to_pylist()[:120] == data.train.labels.tolist()
    assert table["class"][0].as_py() == data.facts.class_names[table["label"][0].as_py()]
    about = json.loads(table.schema.metadata[b"mim_bench"])
    assert (
        len(about["encoder"]["sha256"]) == 64
        and about["data"]["fingerprint"] == data.facts.fingerprint
    )


def test_embed__refuses_in_one_line_and_writes_nothing(run, tmp_path):
    for options, message in (
        ({"out": tmp_path / "f.csv"}, "the name of a .parquet file"),
        ({"readouts": ["block9/cls"]}, "block1 to block2"),
        ({"overrides": ["data.source=folder:nowhere"]}, "nowhere"),
    ):
        given = {"overrides": [], "out": tmp_path / "f.parquet"} | options
        with pytest.raises(UserError, match=message):
            embed(str(run.folder), "tiny", **given)
    assert not list(tmp_path.glob("f.*"))


def test_reconstruct__draws_own_images_of_any_size_at_any_ratio(run, tmp_path):
    levels = np.random.default_rng(0).integers(256, size=(60, 45, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray(levels[:32, :32, 0]).save(tmp_path / "b.png")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for ratios, num_hidden in (((), (8,)), ((0.75, 0.25), (12, 4))):
        config, samples = reconstruct(run.folder, files, ratios, CPU)
        assert tuple(int(one.mask[0].sum()) for one in samples) == num_hidden
        sample = samples[-1]
        assert (
            sample.images.shape == (2, 1, 32, 32) and (sample.mask.sum(1) == num_hidden[-1]).all()
        )
    np.testing.assert_allclose(sample.images[1, 0], levels[:32, :32, 0] / 255, atol=1e-6)
    draw_picture(tmp_path / "picture.png", config, sample)
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_reconstruct__refuses_in_one_line(run, tmp_path):
    (tmp_path / "no.jpg").write_text("no image")
    for files, ratios, message in (
        (["no.jpg"], (), "unreadable image"),
        (["absent.jpg"], (), "absent.jpg"),
        (["no.jpg"], (0.99,), "leaves 0 visible of 16 patches"),
        ([], (), "images: 0 files; allowed: 1 to 8"),
    ):
        with pytest.raises(UserError, match=message) as error:
            reconstruct(run.folder, [tmp_path / name for name in files], ratios, CPU)
        assert "\n" not in str(error.value)
