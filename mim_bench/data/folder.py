"""Folders of image files: class folders, or a flat folder without labels.

Layouts, tried in this order:
- PATH/train and PATH/test (or val, validation), each of class folders or each flat;
- PATH/train alone, or class folders, or image files right in PATH: 10 % of each class (of all, where
  there are no labels) is split off as the test set, by hash of the position among the sorted names.
A class folder is searched to any depth. Names that begin with a dot are left out.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mim_bench.data.decode import decode
from mim_bench.data.image_set import ImageSet, evenly, hold_out
from mim_bench.data.resample import Image8
from mim_bench.errors import UserError

TEST_NAMES = ("test", "val", "validation")
HELD_OUT = 0.1
SPLIT_OFF = f"{HELD_OUT:.0%} of the images, by hash"
"""The split rule where the data has no test images of its own."""
OWN_SPLIT = "the data set's own"
_WHOLE_BYTES = 1 << 30
_BLOCK_BYTES = 64 << 10
_NUM_SAMPLED = 1024

Opened = tuple[ImageSet, ImageSet, tuple[str, ...] | None, str]
"""Train, test, class names, and where the test images come from."""


def fingerprint_files(files: list[Path], names: list[str]) -> str:
    """sha256 of names, sizes and content.

    Content is every byte up to 1 GiB in all; above, the first and last 64 KiB of 1,024 evenly spaced
    files (of all, if they are fewer).
    """
    sizes = [file.stat().st_size for file in files]
    content = hashlib.sha256(
        "\n".join(f"{n} {s}" for n, s in zip(names, sizes, strict=True)).encode()
    )
    whole = sum(sizes) <= _WHOLE_BYTES
    for i in range(len(files)) if whole else evenly(len(files), _NUM_SAMPLED):
        with files[i].open("rb") as file:
            if whole:
                content.update(file.read())
            else:
                content.update(file.read(_BLOCK_BYTES))
                file.seek(max(sizes[i] - _BLOCK_BYTES, 0))
                content.update(file.read(_BLOCK_BYTES))
    return content.hexdigest()


class FolderSet(ImageSet):
    """Image files. Fingerprint: `fingerprint_files` of the names below the root, plus the labels."""

    def __init__(self, root: Path, names: list[str], labels: np.ndarray | None) -> None:
        """`names`: paths of the files relative to `root`; `labels` (N,) int64."""
        self.root = root
        self.names = names
        self.labels = labels
        self._fingerprint = ""

    def __len__(self) -> int:
        return len(self.names)

    def decode(self, i: int) -> Image8:
        return decode(self.root / self.names[i], self.locate(i))

    def locate(self, i: int) -> str:
        return str(self.root / self.names[i])

    def fingerprint(self) -> str:
        if not self._fingerprint:
            files = fingerprint_files([self.root / name for name in self.names], self.names)
            labels = b"" if self.labels is None else self.labels.astype("<i8").tobytes()
            self._fingerprint = hashlib.sha256(files.encode() + labels).hexdigest()
        return self._fingerprint


def _suffixes() -> set[str]:
    Image.init()
    return {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN} | {".npy"}


def _images_below(folder: Path, suffixes: set[str]) -> Iterator[str]:
    """Names relative to `folder`, sorted; links are followed."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield os.path.relpath(os.path.join(parent, name), folder)


def _scan(folder: Path) -> tuple[FolderSet, tuple[str, ...] | None]:
    """The images of a folder of class folders, or of a flat one, and the class names."""
    suffixes = _suffixes()
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    flat = [e.name for e in entries if e.is_file() and e.suffix.lower() in suffixes]
    classes = [(e.name, list(_images_below(e, suffixes))) for e in entries if e.is_dir()]
    classes = [(name, files) for name, files in classes if files]
    if flat and classes:
        raise UserError(
            f"{folder}: images lie beside the class folder {classes[0][0]!r}; "
            "use class folders only, or a flat folder without them"
        )
    if flat:
        return FolderSet(folder, flat, None), None
    if not classes:
        raise UserError(f"{folder}: no images, neither here nor in class folders")
    labels = np.repeat(np.arange(len(classes)), [len(files) for _, files in classes])
    names = [os.path.join(name, file) for name, files in classes for file in files]
    return FolderSet(folder, names, labels.astype(np.int64)), tuple(name for name, _ in classes)


def _match(
    test: FolderSet, test_names: tuple[str, ...] | None, train_names: tuple[str, ...] | None
) -> None:
    """Gives the test images the class indices of training."""
    if (test_names is None) != (train_names is None):
        raise UserError(
            f"{test.root}: train and {test.root.name} must both have class folders, or none"
        )
    if test_names is None or train_names is None or test.labels is None:
        return
    unknown = sorted(set(test_names) - set(train_names))
    if unknown:
        raise UserError(f"{test.root}: class folder {unknown[0]!r} is not among those of training")
    test.labels = np.asarray([train_names.index(name) for name in test_names])[test.labels]


def open_folder(name: str, path: Path | None) -> Opened:
    """Train, test, class names and split rule of a folder. UserError if there is nothing to use."""
    if path is None or not path.is_dir():
        raise UserError(f"{path}: no such folder")
    train_path = path / "train"
    if not train_path.is_dir():
        train, names = _scan(path)
    else:
        train, names = _scan(train_path)
        for test_path in (path / name for name in TEST_NAMES):
            if test_path.is_dir():
                test, test_names = _scan(test_path)
                _match(test, test_names, names)
                return train, test, names, f"the folder {test_path.name}"
    rest, held_out = hold_out(train, HELD_OUT, stream="test")
    return rest, held_out, names, SPLIT_OFF
