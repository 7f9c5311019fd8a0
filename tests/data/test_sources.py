"""Data sources by name: the embedded sample, torchvision's, and wrong names."""

import cut_embedded  # pyright: ignore[reportMissingImports]
import numpy as np
import pyarrow.parquet as pq
import pytest
from picture import labels_of, one_line  # pyright: ignore[reportImplicitRelativeImport]

from mim_bench.config.source import SOURCES
from mim_bench.data import torchvision_sets
from mim_bench.data.sources import open_source, resolve_source
from mim_bench.errors import UserError


def test_list_sources__every_name_is_known():
    assert {"embedded", "cifar10", "cifar100", "fashion-mnist", "stl10", "imagenet"} < set(SOURCES)
    assert all("\n" not in spec.description for spec in SOURCES.values())


def test_resolve_source__makes_paths_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve_source("folder:some/where") == f"folder:{tmp_path}/some/where"
    assert resolve_source("embedded") == "embedded"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("embeded", "nearest: embedded"),
        ("cifar", "nearest: cifar10"),
        ("folder", "needs a path"),
        ("imagenet:", "needs a path"),
        ("embedded:x", "takes no path"),
        ("folder:/no/such/place", "no such folder"),
        ("parquet:/no/such/place", "no such folder"),
    ],
)
def test_open_source__refuses_wrong_names(name, part):
    with pytest.raises(UserError) as error:
        open_source(name)
    assert part in one_line(error)


def test_embedded__is_the_sample_that_was_cut():
    for split, expected in cut_embedded.CONTENT_SHA256.items():
        table = pq.read_table(cut_embedded.HERE / f"{split}.parquet")
        assert cut_embedded.content_hash(table) == expected
        assert np.bincount(table["label"]).tolist() == [cut_embedded.NUM_PER_CLASS[split]] * 10


def test_embedded__opens_with_labels_and_names():
    source = open_source("embedded")
    assert (len(source.train), len(source.test)) == (10_000, 2_000)
    assert source.train.read(0).shape == (28, 28, 1)
    assert source.class_names is not None and source.class_names[9] == "Ankle boot"
    assert "train.parquet row 3 (train/" in source.train.locate(3)


@pytest.mark.skipif(not torchvision_sets.DEBIAN.is_dir(), reason="Debian's package is absent")
def test_embedded__matches_debians_files():
    source, whole = open_source("embedded"), open_source("fashion-mnist")
    assert (len(whole.train), len(whole.test)) == (60_000, 10_000)
    for i in range(0, 10_000, 997):
        index = int(source.train.locate(i).rsplit("/", 1)[1].removesuffix(".png)"))
        assert np.array_equal(source.train.read(i), whole.train.read(index))


def test_torchvision__no_network_is_one_line(tmp_path, monkeypatch):
    def no_network(name, root, train, download):
        assert download
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setenv("MIM_BENCH_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision_sets, "_build", no_network)
    with pytest.raises(UserError) as error:
        open_source("cifar10")
    assert "download failed" in one_line(error) and "cifar10:FOLDER" in one_line(error)


def test_torchvision__given_root_downloads_nothing(tmp_path):
    for name in ("cifar10", "cifar100", "stl10", "fashion-mnist"):
        with pytest.raises(UserError) as error:
            open_source(f"{name}:{tmp_path}")
        assert "not found or damaged" in one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_torchvision__reads_cifar_and_stl_layouts(monkeypatch):
    class Fake:
        def __init__(self, name):
            shape = (4, 3, 6, 8) if name == "stl10" else (4, 6, 8, 3)
            self.data = np.arange(576, dtype=np.uint16).astype(np.uint8).reshape(shape)
            setattr(self, "labels" if name == "stl10" else "targets", [0, 1, 0, 1])
            self.classes = ["a", "b"]

    monkeypatch.setattr(torchvision_sets, "_build", lambda name, *_, **__: Fake(name))
    for name in ("cifar10", "stl10"):
        source = open_source(f"{name}:/anywhere")
        assert source.train.read(1).shape == (6, 8, 3)
        assert labels_of(source.train) == [0, 1, 0, 1] and source.class_names == ("a", "b")
    assert source.train.read(0)[0, 1, 2] == Fake("stl10").data[0, 2, 0, 1]


def test_read_idx__damaged_file_is_named(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(UserError, match="damaged idx file"):
        open_source(f"fashion-mnist:{tmp_path}")
