"""Nothing of a user's images is taken for something else, left out or trained and tested on unseen."""

import logging
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SMALL
from picture import class_folders, counts_of, encoded, labels_of, one_line, tile, write  # pyright: ignore[reportImplicitRelativeImport]
from PIL import Image

from mim_bench.config.resolve import load_config
from mim_bench.data.decode import decode
from mim_bench.data.duplicates import count_duplicates
from mim_bench.data.image_set import ArraySet
from mim_bench.data.run_data import open_data
from mim_bench.data.sources import open_source
from mim_bench.data.split import load_split
from mim_bench.errors import UserError

CPU = torch.device("cpu")


def opened(source, *overrides):
    return open_data(
        load_config("pixel", "tiny", [*SMALL, f"data.source={source}", *overrides]), CPU
    )


# ---- layouts ----


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("Train", "Test"),
        ("train", "valid"),
        ("train", "dev"),
        ("TRAIN", "Validation"),
    ],
)
def test_split_names__are_read_without_regard_to_case(tmp_path, train, test):
    class_folders(tmp_path / train)
    class_folders(tmp_path / test, num=5)
    data = opened(f"folder:{tmp_path}")
    assert (data.facts.num_train_images, data.facts.num_evaluated_images) == (24, 10)
    assert data.facts.class_names == ("cat", "dog")
    assert data.summary.endswith(
        f"24 training images, 2 classes; evaluated on 10 images, the folder {test}"
    )


def test_evaluation_split__is_the_first_with_labels(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "val", num=3)
    write(tmp_path / "test" / "0.png", tile(0))
    source = open_source(f"folder:{tmp_path}")
    assert counts_of(source.test) == [3, 3]
    assert source.split_rule == "the folder val (test left out)"


def test_unlabelled_evaluation__is_refused_before_training_and_serves_pre_training_alone(tmp_path):
    class_folders(tmp_path / "train")
    write(tmp_path / "test" / "0.png", tile(0))
    with pytest.raises(UserError, match=r"the folder test, have no labels; data\.evaluate_on=tune"):
        opened(f"folder:{tmp_path}")
    assert opened(f"folder:{tmp_path}", "evaluate.protocols=none").facts.num_evaluated_images == 1


def test_left_out__is_named(tmp_path, caplog):
    class_folders(tmp_path / "train", names=("cat", "dog", "emu"))
    class_folders(tmp_path / "test", names=("cat", "dog"))
    for place in ("train/fox/notes.txt", "train/cat/list.csv", "extra/0.txt"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    with caplog.at_level(logging.WARNING):
        assert counts_of(open_source(f"folder:{tmp_path}").train) == [12, 12, 12]
    for part in ("no images of its own in fox", "2 entries that are no images left out", "such as extra",
                 "no images of 1 classes, such as emu"):  # fmt: skip
        assert part in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission__is_named(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "cat").chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        open_source(f"folder:{tmp_path}")


# ---- duplicates ----


def test_link_back_to_itself__gives_each_image_once(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "cat" / "again").symlink_to(".")
    (tmp_path / "cow").symlink_to("cat")
    source = open_source(f"folder:{tmp_path}")
    assert len(source.train) + len(source.test) == 24 and source.class_names == ("cat", "dog")


@pytest.mark.parametrize("memory_gb", [1.0, 1e-9])
def test_test_images_that_are_trained_on__are_counted(tmp_path, memory_gb, caplog):
    class_folders(tmp_path / "train", num=60)
    class_folders(tmp_path / "test", num=60)
    for path in sorted((tmp_path / "test").rglob("*.png"))[2:]:
        write(path, 255 - np.asarray(Image.open(path)))
    data = opened(f"folder:{tmp_path}", f"runtime.memory_gb={memory_gb}", "data.limit_images=none")
    assert (
        data.facts.num_duplicates == 2 and "2 of 120 evaluated images are training" in caplog.text
    )


def test_count_duplicates__compares_every_pixel():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    near = images[:1].copy()
    near[0, 0, 1, 2] += 1
    new = generator.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    sets = [
        ArraySet(array, None, "a") for array in (images, np.concatenate([near, images[3:5], new]))
    ]
    train, evaluated = (load_split(one, device=CPU) for one in sets)
    assert count_duplicates(train, evaluated, "a") == 2


# ---- depth ----


def test_levels_of_another_depth__are_refused_or_warned_about(tmp_path, caplog):
    for i in range(24):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(tile(i)[:, :, 0].astype(np.uint16)).save(path)  # 8-bit levels in 16 bits
    with pytest.raises(
        UserError, match=r"every pixel of \d+ images is 0 of 255; of 16-bit files the high"
    ):
        opened(f"folder:{tmp_path}")
    for path in tmp_path.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) * 16).save(path)  # 12-bit levels
    opened(f"folder:{tmp_path}")
    assert "levels from 0 to 15 of 255" in caplog.text


def test_negative_levels__are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), -5, np.int32), mode="I").save(tmp_path / "ct.tif")
    with pytest.raises(UserError, match="levels -5 to -5, not 16-bit"):
        decode(tmp_path / "ct.tif", "ct")


# ---- files that are none ----


def test_odd_files__are_skipped_or_named_and_never_waited_for(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "dog" / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="unreadable image"):
        opened(f"folder:{tmp_path}", "data.limit_images=none")
    data = opened(f"folder:{tmp_path}", "data.limit_images=none", "data.skip_bad_images=true")
    assert data.facts.num_skipped_images == 3 and "3 unreadable left out" in data.summary


def test_names_that_are_not_utf_8__are_read_and_recorded(tmp_path):
    root = os.fsencode(tmp_path)
    class_folders(tmp_path)
    os.rename(root + b"/cat", root + b"/caf\xe9")  # noqa: PTH104 (bytes)
    os.rename(root + b"/dog/00.png", root + b"/dog/\xe9.png")  # noqa: PTH104 (bytes)
    facts = opened(f"folder:{tmp_path}").facts
    assert facts.class_names == ("caf\ufffd", "dog") and "caf" in facts.model_dump_json()


# ---- parquet ----


def shard(path, label, start=0, num=12, key="image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {key: pa.array([{"bytes": encoded(tile(start + i))} for i in range(num)])}
    if label is not None:
        columns["label"] = label
    pq.write_table(pa.table(columns), path)


def ints(*values, kind=None):
    return pa.array([*values] * 6, kind or pa.int64())


@pytest.mark.parametrize("other", ["train_small-0", "trainer", "train-small"])
def test_parquet__takes_exact_split_names_alone(tmp_path, other, caplog):
    for name in ("train-00000-of-00001", other, "Test.0"):
        shard(tmp_path / f"{name}.parquet", ints(0, 1), start=0 if name != "Test.0" else 50)
    source = open_source(f"parquet:{tmp_path}")
    assert (len(source.train), len(source.test)) == (12, 12) and f"such as {other}" in caplog.text


@pytest.mark.parametrize("layout", ["{}/0000.parquet", "data/{}-0.parquet", "{}.PARQUET"])
def test_parquet__layouts_of_the_hub(tmp_path, layout):
    for start, name in ((0, "train"), (50, "validation")):
        shard(tmp_path / layout.format(name), ints(0, 1), start)
    source = open_source(f"parquet:{tmp_path}")
    assert (len(source.train), len(source.test)) == (12, 12)


@pytest.mark.parametrize("label", [ints(-1, -1), pa.nulls(12), None])
def test_parquet__evaluates_where_there_are_labels(tmp_path, label):
    shard(tmp_path / "train-0.parquet", ints(0, 1))
    shard(tmp_path / "test-0.parquet", label, 50)
    with pytest.raises(UserError, match="the files test, have no labels"):
        opened(f"parquet:{tmp_path}")
    shard(tmp_path / "validation-0.parquet", ints(0, 1), 80)
    assert (
        opened(f"parquet:{tmp_path}").facts.evaluated_on == "the files validation (test left out)"
    )


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (ints(2105855, 1440764), ("1440764", "2105855")),
        (ints(1, 2), ("1", "2")),
        (pa.array(["bee", "ant"] * 6), ("ant", "bee")),
        (pa.array(["bee", "ant"] * 6).dictionary_encode(), ("ant", "bee")),
        (ints(True, False, kind=pa.bool_()), ("0", "1")),
        (ints(1.0, 0.0, kind=pa.float64()), ("0", "1")),
    ],
)
def test_parquet__labels_become_class_indices_with_their_names(tmp_path, labels, names):
    shard(tmp_path / "train-0.parquet", labels)
    source = open_source(f"parquet:{tmp_path}")
    assert set(labels_of(source.train)) == {0, 1} and source.class_names == names


def test_parquet__shards_may_differ_in_what_means_the_same(tmp_path):
    shard(tmp_path / "train-0.parquet", ints(0, 1))
    shard(tmp_path / "train-1.parquet", ints(0, 1, kind=pa.int32()), 30, key="img")
    source = open_source(f"parquet:{tmp_path}")
    assert labels_of(source.train).count(0) + labels_of(source.test).count(0) == 12
    assert source.train.read(len(source.train) - 1).shape == (24, 24, 3)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (pa.nulls(12), "no labels, though other shards"),
        (None, "no labels, though other shards"),
        (pa.array(["a", "b"] * 6), "words in one shard and numbers in another"),
        (ints(0, None), "image 1 has no label"),
        (ints(0.5, 1.0, kind=pa.float64()), "no class indices"),
        (pa.array([[0], [1]] * 6), "neither integer nor string"),
    ],
)
def test_parquet__shards_that_do_not_fit_are_named_in_one_line(tmp_path, second, said):
    shard(tmp_path / "train-0.parquet", ints(0, 1))
    shard(tmp_path / "train-1.parquet", second, 30)
    with pytest.raises(UserError) as error:
        open_source(f"parquet:{tmp_path}")
    assert said in one_line(error) and "train-1.parquet" in one_line(error)
