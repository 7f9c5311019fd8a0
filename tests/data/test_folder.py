"""Folders of images: layouts, channels, splits, and one line for what can be wrong."""

from pathlib import Path

import numpy as np
import pytest
from picture import class_folders, counts_of, labels_of, one_line, tile, write  # pyright: ignore[reportImplicitRelativeImport]

from mim_bench.data.image_set import hold_out
from mim_bench.data.sources import open_source
from mim_bench.errors import UserError


def test_folder__train_and_test_of_class_folders(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "val", num=3, names=("dog",))
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ("cat", "dog")
    assert counts_of(source.train) == [12, 12]
    assert labels_of(source.test) == [1, 1, 1]
    assert np.array_equal(source.train.read(0), tile(0))


def test_folder__without_test_splits_off_a_tenth(tmp_path):
    class_folders(tmp_path, num=20)
    source, again = (open_source(f"folder:{tmp_path}") for _ in range(2))
    assert counts_of(source.train) == [18, 18]
    assert counts_of(source.test) == [2, 2]
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
    assert counts_of(source.train) == [11, 10]
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


def _classes_in_test_alone(root: Path) -> None:
    write(root / "train" / "0.png", tile(0))
    class_folders(root / "test")


def _test_alone(root: Path) -> None:
    class_folders(root / "val")


def _splits_among_classes(root: Path) -> None:
    class_folders(root, names=("cat", "Dev", "TRAIN_2"))


def _splits_one_level_down(root: Path) -> None:
    class_folders(root / "pets" / "train")
    class_folders(root / "pets" / "test")


def _two_spellings(root: Path) -> None:
    class_folders(root / "train")
    class_folders(root / "Train")


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
        (_mixed, "next to the class folder"),
        (_unknown_test_class, "'cow' is not among those of training"),
        (_classes_in_test_alone, "must both have class folders"),
        (_test_alone, "'val' has the name of a split"),
        (_splits_among_classes, "'Dev' has the name of a split"),
        (_splits_one_level_down, "'pets' holds splits, not a class"),
        (_two_spellings, "which one is meant?"),
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
