"""Folders of image files: class folders, or a flat folder without labels.

Layouts, tried in this order; split names are read without regard to case:
- PATH/train (training) and PATH/test (testing, val, valid, validation, dev), each of class folders or flat. Of
  several to evaluate on, the first with labels is taken: ILSVRC's flat test/ leaves val/.
- PATH/train alone, or class folders, or image files right in PATH: 10 % of each class (of all, where
  there are no labels) is split off as the test set, by hash of the position among the sorted names.
A class folder is searched to any depth, each real folder once. Names that begin with a dot are left out; what
else is left out is warned about.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mim_bench.data.decode import decode
from mim_bench.data.image_set import ImageSet, evenly, hold_out
from mim_bench.data.resample import Image8
from mim_bench.errors import UserError

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation", "dev")
_logger = logging.getLogger(__name__)
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
    files (of all, if they are fewer). Of a file that cannot be read the name counts alone.
    """
    sizes = list(map(file_size, files))
    lines = (f"{name} {size}" for name, size in zip(names, sizes, strict=True))
    content = hashlib.sha256(os.fsencode("\n".join(lines)))
    hashes_content = sum(sizes) <= _WHOLE_BYTES
    for i in range(len(files)) if hashes_content else evenly(len(files), _NUM_SAMPLED):
        if sizes[i] < 0 or not os.access(files[i], os.R_OK):
            continue
        with files[i].open("rb") as file:
            if hashes_content:
                content.update(file.read())
            else:
                content.update(file.read(_BLOCK_BYTES))
                file.seek(max(sizes[i] - _BLOCK_BYTES, 0))
                content.update(file.read(_BLOCK_BYTES))
    return content.hexdigest()


def file_size(file: Path) -> int:
    """Bytes of a regular file; -1 for a link to nothing, a pipe, a device."""
    try:
        status = file.stat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


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

    def content_size(self, i: int) -> int:
        return file_size(self.root / self.names[i])

    def content(self, i: int) -> bytes:
        return (self.root / self.names[i]).read_bytes()

    def fingerprint(self) -> str:
        if not self._fingerprint:
            files = fingerprint_files([self.root / name for name in self.names], self.names)
            labels = b"" if self.labels is None else self.labels.astype("<i8").tobytes()
            self._fingerprint = hashlib.sha256(files.encode() + labels).hexdigest()
        return self._fingerprint


def _suffixes() -> set[str]:
    Image.init()
    return {
        suffix for suffix, format_name in Image.EXTENSION.items() if format_name in Image.OPEN
    } | {".npy"}


def _images_below(
    folder: Path, suffixes: set[str], visited: set[tuple[int, int]], others: list[str]
) -> Iterator[str]:
    """Names relative to `folder`, sorted; links are followed, each real folder once.

    `visited`: devices and inodes of folders; `others` takes the files that are no images.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}")

    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.relpath(os.path.join(parent, name), folder)
            if not name.startswith("."):
                if os.path.splitext(name)[1].lower() in suffixes:
                    yield path
                else:
                    others.append(path)


def _scan(folder: Path) -> tuple[FolderSet, tuple[str, ...] | None]:
    """The images of a folder of class folders, or of a flat one, and the class names."""
    suffixes, visited, others = _suffixes(), set[tuple[int, int]](), list[str]()
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [e.name for e in entries if not e.is_dir()]
    flat = [name for name in files if os.path.splitext(name)[1].lower() in suffixes]
    others += [name for name in files if name not in flat]
    below = [
        (entry.name, list(_images_below(entry, suffixes, visited, others)))
        for entry in entries
        if entry.is_dir()
    ]
    classes = [(name, files) for name, files in below if files]
    if flat and classes:
        raise UserError(
            f"{folder}: images lie next to the class folder {classes[0][0]!r}; "
            "use class folders only, or a flat folder without them"
        )
    _report(folder, [name for name, files in below if not files], others)
    if flat:
        return FolderSet(folder, flat, None), None
    if not classes:
        has_parquet = any(folder.glob("*.parquet"))
        hint = f"; its Parquet files: parquet:{folder}" if has_parquet else ""
        raise UserError(f"{folder}: no images, neither here nor in class folders{hint}")
    _check_classes(folder, [name for name, _ in classes])
    labels = np.repeat(np.arange(len(classes)), [len(files) for _, files in classes])
    names = [os.path.join(name, file) for name, files in classes for file in files]
    class_names = tuple(os.fsencode(name).decode(errors="replace") for name, _ in classes)
    return FolderSet(folder, names, labels.astype(np.int64)), class_names


def _check_classes(folder: Path, names: Sequence[str]) -> None:
    """Refuses splits that would be taken for classes."""
    splits = {*TRAIN_NAMES, *TEST_NAMES}
    if wrong := [name for name in names if name.lower() in splits]:
        raise UserError(
            f"{folder}: class folder {wrong[0]!r} has the name of a split; needed are class folders, or train "
            "and test (or val) with class folders in each"
        )
    for name in names:
        if any(child.name.lower() in TRAIN_NAMES for child in (folder / name).iterdir()):
            raise UserError(
                f"{folder}: {name!r} holds splits, not a class; is {folder / name} meant?"
            )


def _report(folder: Path, empty: Sequence[str], others: Sequence[str]) -> None:
    if empty:
        examples = ", ".join(empty[:5]) + ", ..." * (len(empty) > 5)
        _logger.warning("%s: no images of its own in %s: left out", folder, examples)
    if others:
        _logger.warning(
            "%s: %d entries that are no images left out, such as %s", folder, len(others), others[0]
        )


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
    if missing := sorted(set(train_names) - set(test_names)):
        _logger.warning(
            "%s: no images of %d classes, such as %s", test.root, len(missing), missing[0]
        )
    test.labels = np.asarray([train_names.index(name) for name in test_names])[test.labels]


def split_folders(path: Path) -> dict[str, Path]:
    """Split name in lower case -> its folder. UserError where two spellings of a name are there."""
    by_split: dict[str, Path] = {}
    for entry in sorted(path.iterdir()):
        name = entry.name.lower()
        if name in (*TRAIN_NAMES, *TEST_NAMES) and entry.is_dir():
            if name in by_split:
                raise UserError(
                    f"{path}: both {by_split[name].name} and {entry.name}; which one is meant?"
                )
            by_split[name] = entry
    return by_split


def existing_folder(path: Path | None) -> Path:
    """The path of a source, which must be a folder."""
    if path is None or not path.is_dir():
        is_file = path is not None and path.is_file()
        raise UserError(
            f"data.source: {path}: a file; give the folder it lies in"
            if is_file
            else f"data.source: {path}: no such folder"
        )
    return path


def first_labelled(has_labels: dict[str, bool]) -> tuple[str, str]:
    """The split to evaluate on, and in words which are left out for it."""
    name = next((name for name, labelled in has_labels.items() if labelled), next(iter(has_labels)))
    others = ", ".join(other for other in has_labels if other != name)
    return name, f" ({others} left out)" * bool(others)


def open_folder(name: str, path: Path | None) -> Opened:
    """Train, test, class names and split rule of a folder. UserError if there is nothing to use."""
    path = existing_folder(path)
    splits = split_folders(path)
    trains = [splits[split_name] for split_name in TRAIN_NAMES if split_name in splits]
    tests = {split_name: splits[split_name] for split_name in TEST_NAMES if split_name in splits}
    if empty := [split_name for split_name, folder in tests.items() if not any(folder.iterdir())]:
        _report(path, [tests.pop(split_name).name for split_name in empty], [])
    if len(trains) > 1:
        raise UserError(f"{path}: both {trains[0].name} and {trains[1].name}; which one is meant?")
    if tests and not trains:
        test_name = next(iter(tests.values())).name
        raise UserError(
            f"{path}: a folder {test_name!r} has the name of a split, but there is no train; needed are class "
            "folders, or train and test (or val)"
        )
    train, names = _scan(trains[0] if trains else path)
    entries = path.iterdir() if trains else ()
    _report(path, [], [e.name for e in entries if e.is_dir() and e.name.lower() not in splits])
    if tests:
        scanned = {split_name: _scan(folder) for split_name, folder in tests.items()}
        labelled = {name: classes is not None for name, (_, classes) in scanned.items()}
        chosen, left_out = first_labelled(labelled)
        test, test_names = scanned[chosen]
        if names is None or test_names is not None:
            _match(test, test_names, names)
        return train, test, names, f"the folder {tests[chosen].name}{left_out}"
    remaining, held_out = hold_out(train, HELD_OUT, stream="test")
    return remaining, held_out, names, SPLIT_OFF
