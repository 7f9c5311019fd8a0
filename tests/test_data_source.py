"""Data sources: layouts, channels, splits, and one clear line for each thing that can be wrong."""

import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data as photographs

from mim_bench.data import ArraySet, hold_out, limit, list_sources, open_source, resolve_source
from mim_bench.data import parquet as parquet_module
from mim_bench.data import torchvision_source
from mim_bench.embedded import make
from mim_bench.error import UserError

PHOTO = photographs.astronaut()


def tile(i: int, size: int = 24) -> np.ndarray:
    """A piece of a photograph."""
    top, left = 37 * i % 480, 53 * i % 480
    return PHOTO[top : top + size, left : left + size]


def write(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


def class_folders(root: Path, num: int = 12, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    for label, name in enumerate(names):
        for i in range(num):
            write(root / name / f"{i:02d}.png", tile(100 * label + i))
    return root


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format=kind)
    return file.getvalue()


def write_parquet(path: Path, images: list[bytes | None], labels: list[int | None] | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(images)]}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    features = {"label": {"_type": "ClassLabel", "names": ["ant", "bee"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    line = str(error.value)
    assert "\n" not in line
    return line


# ---------------------------------------------------------------- names


def test_list_sources__every_name_is_known():
    assert {"embedded", "cifar10", "cifar100", "fashion-mnist", "stl10", "imagenet"} < set(
        list_sources()
    )
    assert all("\n" not in line for line in list_sources().values())


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


# ---------------------------------------------------------------- the embedded sample


def test_embedded__is_the_sample_that_was_cut():
    for split, expected in make.CONTENT_SHA256.items():
        table = pq.read_table(make.HERE / f"{split}.parquet")
        assert make.content_hash(table) == expected
        assert np.bincount(table["label"]).tolist() == [make.NUM_PER_CLASS[split]] * 10


def test_embedded__opens_with_labels_and_names():
    source = open_source("embedded")
    assert (len(source.train), len(source.test)) == (10_000, 2_000)
    assert source.train.read(0).shape == (28, 28, 1)
    assert source.class_names is not None and source.class_names[9] == "Ankle boot"
    assert "train.parquet row 3 (train/" in source.train.locate(3)


@pytest.mark.skipif(not torchvision_source.DEBIAN.is_dir(), reason="Debian's package is absent")
def test_embedded__matches_debians_files():
    source, whole = open_source("embedded"), open_source("fashion-mnist")
    assert (len(whole.train), len(whole.test)) == (60_000, 10_000)
    for i in range(0, 10_000, 997):
        index = int(source.train.locate(i).rsplit("/", 1)[1].removesuffix(".png)"))
        assert np.array_equal(source.train.read(i), whole.train.read(index))


# ---------------------------------------------------------------- folders


def test_folder__train_and_test_of_class_folders(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "val", num=3, names=("dog",))
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ("cat", "dog")
    assert np.bincount(source.train.labels).tolist() == [12, 12]
    assert source.test.labels.tolist() == [1, 1, 1]
    assert np.array_equal(source.train.read(0), tile(0))


def test_folder__without_test_splits_off_a_tenth(tmp_path):
    class_folders(tmp_path, num=20)
    source, again = (open_source(f"folder:{tmp_path}") for _ in range(2))
    assert np.bincount(source.train.labels).tolist() == [18, 18]
    assert np.bincount(source.test.labels).tolist() == [2, 2]
    names = {source.test.locate(i) for i in range(4)}
    assert names == {again.test.locate(i) for i in range(4)}
    assert names.isdisjoint(source.train.locate(i) for i in range(36))
    assert "10%" in source.split_rule


def test_folder__flat_has_no_labels(tmp_path):
    for i in range(10):
        write(tmp_path / f"{i}.jpg", tile(i))
    source = open_source(f"folder:{tmp_path}")
    assert source.train.labels is None and source.test.labels is None
    assert source.class_names is None
    assert (len(source.train), len(source.test)) == (9, 1)


def test_imagenet__folder_with_the_constants_of_the_literature(tmp_path):
    class_folders(tmp_path / "train", num=2, names=("n01440764", "n01443537"))
    class_folders(tmp_path / "val", num=1, names=("n01440764", "n01443537"))
    source = open_source(f"imagenet:{tmp_path}")
    assert source.normalisation is not None and source.normalisation[0] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)],
)
def test_folder__pillow_modes(tmp_path, mode, channels):
    for i in range(4):
        write(tmp_path / f"{i}.{'tiff' if mode == 'CMYK' else 'png'}", tile(i, 16), mode)
    assert open_source(f"folder:{tmp_path}").train.read(0).shape == (16, 16, channels)


def test_folder__keeps_high_byte_of_16_bit(tmp_path):
    deep = (np.arange(64, dtype=np.uint16) * 1021).reshape(8, 8)
    for i in range(2):
        write(tmp_path / f"{i}.png", deep)
        np.save(tmp_path / f"more{i}.npy", deep)
    source = open_source(f"folder:{tmp_path}")
    for i in range(len(source.train)):
        assert np.array_equal(source.train.read(i)[:, :, 0], deep >> 8)


def test_folder__many_channels_from_numpy_files(tmp_path):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.full((6, 9, 7), i, dtype=np.uint8))
    assert open_source(f"folder:{tmp_path}").train.read(0).shape == (6, 9, 7)


def test_folder__mixed_grey_and_colour_follow_the_majority(tmp_path):
    for i in range(9):
        write(tmp_path / f"{i}.png", tile(i), "L" if i < 3 else None)
    source = open_source(f"folder:{tmp_path}")
    assert {source.train.read(i).shape[2] for i in range(len(source.train))} == {3}


def test_folder__other_channel_counts_are_refused(tmp_path):
    for i in range(8):
        write(tmp_path / f"{i}.png", tile(i))
    np.save(tmp_path / "odd.npy", np.zeros((24, 24, 5), dtype=np.uint8))
    source = open_source(f"folder:{tmp_path}")
    with pytest.raises(UserError, match=r"odd\.npy: 5 channels, where the others have 3"):
        for image_set in (source.train, source.test):
            for i in range(len(image_set)):
                image_set.read(i)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_folder__truncated_image_is_named(tmp_path, suffix):
    files = [write(tmp_path / f"{i}.{suffix}", tile(i)) for i in range(6)]
    _truncate(files[2])
    with pytest.raises(UserError) as error:
        open_source(f"folder:{tmp_path}")
    assert str(files[2]) in one_line(error) and "unreadable image" in one_line(error)


def test_folder__bad_images_are_skipped_and_counted(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "test", num=2)
    _truncate(tmp_path / "train" / "cat" / "03.png")
    (tmp_path / "train" / "dog" / "05.png").write_bytes(b"not an image")
    (tmp_path / "train" / "dog" / "06.png").write_bytes(b"")
    source = open_source(f"folder:{tmp_path}", skip_bad_images=True)
    assert (len(source.train), source.train.num_skipped) == (21, 3)
    assert np.bincount(source.train.labels).tolist() == [11, 10]
    assert source.test.num_skipped == 0
    kept, tune = hold_out(source.train, 0.2)
    assert (kept.num_skipped, len(kept) + len(tune)) == (3, 21)


def _empty(root: Path) -> None:
    root.mkdir(exist_ok=True)


def _single_class(root: Path) -> None:
    class_folders(root, names=("cat",))


def _mixed(root: Path) -> None:
    write(class_folders(root) / "stray.png", tile(0))


def _unknown_test_class(root: Path) -> None:
    class_folders(root / "train")
    class_folders(root / "test", names=("cat", "cow"))


def _flat_test(root: Path) -> None:
    class_folders(root / "train")
    write(root / "test" / "0.png", tile(0))


def _one_image(root: Path) -> None:
    write(root / "0.png", tile(0))


def _floats(root: Path) -> None:
    for i in range(2):
        np.save(root / f"{i}.npy", np.zeros((4, 4)))


def _all_bad(root: Path) -> None:
    for i in range(3):
        (root / f"{i}.png").write_bytes(b"no")


@pytest.mark.parametrize(
    ("build", "part"),
    [
        (_empty, "no images"),
        (_single_class, "one class"),
        (_mixed, "beside the class folder"),
        (_unknown_test_class, "'cow' is not among those of training"),
        (_flat_test, "must both have class folders"),
        (_one_image, "too few"),
        (_floats, "float64"),
        (_all_bad, "unreadable"),
    ],
)
def test_folder__refuses_in_one_line(tmp_path, build, part):
    build(tmp_path)
    with pytest.raises(UserError) as error:
        open_source(f"folder:{tmp_path}")
    assert part in one_line(error)


def test_folder__not_one_readable_image(tmp_path):
    _all_bad(tmp_path)
    with pytest.raises(UserError, match="not one of 2 training images is readable"):
        open_source(f"folder:{tmp_path}", skip_bad_images=True)


# ---------------------------------------------------------------- Parquet


def test_parquet__shards_labels_and_names(tmp_path):
    images = [encoded(tile(i)) for i in range(10)]
    write_parquet(tmp_path / "train-00000-of-00002.parquet", images[:6], [0, 1] * 3)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", images[6:], [0, 1] * 2)
    write_parquet(tmp_path / "validation.parquet", images[:2], [1, 0])
    source = open_source(f"parquet:{tmp_path}")
    assert source.class_names == ("ant", "bee")
    assert source.train.labels.tolist() == [0, 1] * 5 and source.test.labels.tolist() == [1, 0]
    assert all(np.array_equal(source.train.read(i), tile(i)) for i in range(10))
    assert source.train.locate(7).endswith("train-00001-of-00002.parquet row 1 (1.png)")


def test_parquet__large_files_are_mapped_with_the_same_pixels(tmp_path, monkeypatch):
    for shard in range(2):
        images = [encoded(tile(10 * shard + i)) for i in range(5)]
        write_parquet(tmp_path / f"train-{shard}.parquet", images, [0, 1, 0, 1, 0])
    monkeypatch.setattr(parquet_module, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setenv("MIM_BENCH_DATA", str(tmp_path / "cache"))
    source = open_source(f"parquet:{tmp_path}")
    assert sorted(p.suffix for p in (tmp_path / "cache" / "arrow").iterdir()) == [".arrow"] * 2
    again = pickle.loads(pickle.dumps(source.train))
    for i in range(len(again)):
        assert np.array_equal(again.read(i), source.train.read(i))


def test_parquet__without_labels(tmp_path):
    images = [encoded(tile(i)) for i in range(10)]
    write_parquet(tmp_path / "train.parquet", images, None)
    assert open_source(f"parquet:{tmp_path}").train.labels is None
    write_parquet(tmp_path / "train.parquet", images, [-1, None] * 5)
    assert open_source(f"parquet:{tmp_path}").train.labels is None


GOOD = [encoded(tile(i)) for i in range(4)]


@pytest.mark.parametrize(
    ("images", "labels", "part"),
    [
        ([], [], "no images"),
        (GOOD, [1, 1, 1, 1], "one class"),
        (GOOD, [0, 1, None, 1], "image 2 has no label"),
        ([*GOOD[:3], GOOD[3][:200]], [0, 1, 0, 1], "row 3 (3.png): unreadable image"),
        ([*GOOD[:3], None], [0, 1, 0, 1], "row 3 (3.png): unreadable image"),
    ],
)
def test_parquet__refuses_in_one_line(tmp_path, images, labels, part):
    write_parquet(tmp_path / "train.parquet", images, labels)
    write_parquet(tmp_path / "test.parquet", GOOD, [0, 1, 0, 1])
    with pytest.raises(UserError) as error:
        open_source(f"parquet:{tmp_path}")
    assert part in one_line(error)


def test_parquet__refuses_damaged_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match=r"no train\*\.parquet"):
        open_source(f"parquet:{tmp_path}")
    file = tmp_path / "train.parquet"
    file.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError) as error:
        open_source(f"parquet:{tmp_path}")
    assert "cannot be read" in one_line(error)
    pq.write_table(pa.table({"text": ["a"]}), file)
    with pytest.raises(UserError, match="no column img or image; its columns: text"):
        open_source(f"parquet:{tmp_path}")
    pq.write_table(pa.table({"img": ["a"]}), file)
    with pytest.raises(UserError, match="not encoded images"):
        open_source(f"parquet:{tmp_path}")


def test_parquet__unknown_test_label(tmp_path):
    write_parquet(tmp_path / "train.parquet", GOOD, [0, 1, 0, 1])
    write_parquet(tmp_path / "test.parquet", GOOD, [0, 1, 0, 2])
    with pytest.raises(UserError, match="test label 2"):
        open_source(f"parquet:{tmp_path}")


# ---------------------------------------------------------------- torchvision


def test_torchvision__no_network_is_one_line(tmp_path, monkeypatch):
    def no_network(name, root, train, download):
        assert download
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setenv("MIM_BENCH_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision_source, "_build", no_network)
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

    monkeypatch.setattr(torchvision_source, "_build", lambda name, *_: Fake(name))
    for name in ("cifar10", "stl10"):
        source = open_source(f"{name}:/anywhere")
        assert source.train.read(1).shape == (6, 8, 3)
        assert source.train.labels.tolist() == [0, 1, 0, 1] and source.class_names == ("a", "b")
    assert source.train.read(0)[0, 1, 2] == Fake("stl10").data[0, 2, 0, 1]


def test_read_idx__damaged_file_is_named(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(UserError, match="damaged idx file"):
        open_source(f"fashion-mnist:{tmp_path}")


# ---------------------------------------------------------------- choosing, fingerprints


def array_set(num: int, num_classes: int) -> ArraySet:
    images = np.stack([tile(i) for i in range(num)])
    return ArraySet(images, np.arange(num) * num_classes // num, "tiles")


def test_limit__balanced_nested_and_deterministic():
    whole = array_set(100, 5)
    few, more = limit(whole, 23), limit(whole, 50)
    assert sorted(np.bincount(few.labels).tolist()) == [4, 4, 5, 5, 5]
    assert np.bincount(more.labels).tolist() == [10] * 5
    assert set(few.positions) < set(more.positions)
    assert np.array_equal(limit(whole, 23).positions, few.positions)
    assert limit(whole, 100) is whole


def test_hold_out__disjoint_stratified_and_seeded():
    whole = array_set(100, 5)
    rest, held = hold_out(whole, 0.1)
    assert np.bincount(held.labels).tolist() == [2] * 5
    assert sorted([*rest.positions, *held.positions]) == list(range(100))
    assert not np.array_equal(hold_out(whole, 0.1, seed=1)[1].positions, held.positions)


def test_fingerprint__follows_content_not_place(tmp_path):
    class_folders(tmp_path / "a", num=4)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    a, b = (open_source(f"folder:{tmp_path / name}").train for name in "ab")
    assert a.fingerprint() == b.fingerprint()
    changed = tmp_path / "b" / "cat" / "00.png"
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(bytes(data))
    assert open_source(f"folder:{tmp_path / 'b'}").train.fingerprint() != a.fingerprint()
    assert limit(a, 4).fingerprint() != a.fingerprint()
    first, second = array_set(10, 2), array_set(10, 5)
    assert first.fingerprint() != second.fingerprint()
