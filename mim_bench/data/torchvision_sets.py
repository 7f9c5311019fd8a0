"""Data sets that torchvision reads, and downloads where their licence and host allow it.

`NAME` uses the cache folder ($MIM_BENCH_DATA, else ~/.cache/mim_bench) and downloads into it once;
`NAME:ROOT` reads torchvision's layout under ROOT and downloads nothing. Fashion-MNIST is also read
from its four idx files as Debian's `dataset-fashion-mnist` installs them.
Deliberate difference: of STL-10 only the labelled images are used (5,000 train, 8,000 test).
"""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np

from mim_bench.data.folder import OWN_SPLIT, Opened
from mim_bench.data.image_set import ArraySet
from mim_bench.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_IDX_PREFIX = {"train": "train", "test": "t10k"}
_IDX_KIND = {"images": "images-idx3-ubyte", "labels": "labels-idx1-ubyte"}


def cache_folder() -> Path:
    """Folder of downloads and conversions: $MIM_BENCH_DATA, else ~/.cache/mim_bench."""
    return Path(os.environ.get("MIM_BENCH_DATA") or Path.home() / ".cache" / "mim_bench").absolute()


def find_idx(folder: Path, split: str, content: str) -> Path:
    """The idx file of a split's `images` or `labels`, gzipped or not. UserError if it is not there."""
    path = folder / f"{_IDX_PREFIX[split]}-{_IDX_KIND[content]}"
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path}: no such file, with or without .gz")


def read_idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes, gzipped or not -> uint8 array of its shape."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
        if data[:3] != b"\0\0\x08":
            raise ValueError("not an idx file of unsigned bytes")
        shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: damaged idx file ({error})") from error


def _fashion_folder(root: Path | None) -> Path | None:
    """The folder that holds the four idx files, if one does."""
    if root is None:
        folders = [DEBIAN, cache_folder() / "FashionMNIST" / "raw"]
    else:
        folders = [root, root / "FashionMNIST" / "raw"]
    for folder in folders:
        if list(folder.glob("train-images-idx3-ubyte*")):
            return folder
    return None


def _fashion(folder: Path) -> Opened:
    sets = []
    for split in ("train", "test"):
        images, labels = (read_idx(find_idx(folder, split, content)) for content in _IDX_KIND)
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise UserError(
                f"{folder}: images of shape {images.shape} and labels of shape {labels.shape} of {split} "
                "do not belong together; needed are (N, H, W) and (N,)"
            )
        sets.append(ArraySet(images, labels, f"fashion-mnist {split}"))
    return sets[0], sets[1], FASHION_CLASSES, OWN_SPLIT


def _build(name: str, root: Path, train: bool, download: bool) -> Any:
    from torchvision import datasets  # slow to import, and most runs do without

    if name == "stl10":
        return datasets.STL10(str(root), split="train" if train else "test", download=download)
    classes = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "fashion-mnist": datasets.FashionMNIST,
    }
    return classes[name](str(root), train=train, download=download)


def _array_set(name: str, data: Any, split: str) -> ArraySet:
    images = np.asarray(data.data)
    if name == "stl10":
        images = images.transpose(0, 2, 3, 1)  # (N, C, H, W) in the binaries
    return ArraySet(
        images, np.asarray(getattr(data, "targets", None) or data.labels), f"{name} {split}"
    )


def open_torchvision(name: str, root: Path | None) -> Opened:
    """Train, test, class names and split rule of a data set that torchvision reads; UserError if it cannot be had."""
    if name == "fashion-mnist":
        folder = _fashion_folder(root)
        if folder is not None:
            return _fashion(folder)
    folder_used = root or cache_folder()
    try:
        folder_used.mkdir(parents=True, exist_ok=True) if root is None else None
        train, test = (
            _build(name, folder_used, split, download=root is None) for split in (True, False)
        )
    except (OSError, RuntimeError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if root is not None:
            raise UserError(f"{name}:{root}: not found or damaged ({reason})") from error
        raise UserError(
            f"{name}: no copy in {folder_used} and the download failed ({reason}); "
            f"put torchvision's files there or give {name}:FOLDER"
        ) from error
    if name == "fashion-mnist":
        return _fashion(folder_used / "FashionMNIST" / "raw")
    return (
        _array_set(name, train, "train"),
        _array_set(name, test, "test"),
        tuple(train.classes),
        OWN_SPLIT,
    )
