"""Small real images on disk, for the tests of the data sources."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from mim_bench.data.image_set import ArraySet, ImageSet
from mim_bench.errors import UserError

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


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    line = str(error.value)
    assert "\n" not in line
    return line


def array_set(num: int, num_classes: int) -> ArraySet:
    images = np.stack([tile(i) for i in range(num)])
    return ArraySet(images, np.arange(num) * num_classes // num, "tiles")


def labels_of(image_set: ImageSet) -> list[int]:
    """Its labels, which it must have."""
    assert image_set.labels is not None
    return image_set.labels.tolist()


def counts_of(image_set: ImageSet) -> list[int]:
    """Images of each class."""
    return np.bincount(labels_of(image_set)).tolist()
