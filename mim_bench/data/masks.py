"""Images with a class for each pixel, for the `segment` protocol.

- `folder:PATH`: `train/images/` and `train/masks/`, and the same of `test` (or `val`); a mask has its image's stem.
- `parquet:PATH`: `train*.parquet` and `test*.parquet` with columns `image` and `mask`, encoded bytes.
- `scenes`: made of the embedded Fashion-MNIST sample: 2 x 2 garments on black; a pixel's class is that of its garment,
  1 to 10, where it is brighter than a tenth, and 0, background, elsewhere.

A mask is a grey or palette image of class indices; 255 is ignored. Nothing is interpolated in it.

Legend: N images, H W an image's size, C channels.
"""

from abc import ABC, abstractmethod
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from mim_bench import rng
from mim_bench.data.decode import decode
from mim_bench.data.folder import existing_folder, split_folders
from mim_bench.data.resample import Image8
from mim_bench.data.sources import open_source
from mim_bench.errors import UserError

IGNORED = 255
"""Value in a mask that stands for no class."""
_TESTS = ("test", "val", "validation", "valid")
_SCENES = {"train": 500, "test": 500}
"""Scenes of a split, 4 garments each: the embedded sample has 10,000 and 2,000."""
_FOREGROUND = 26
"""Least level of a garment's pixel."""


class MaskedSet(ABC):
    """Images and their masks, read one by one."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def image(self, i: int) -> Image8:
        """(H, W, C) uint8."""

    @abstractmethod
    def mask(self, i: int) -> np.ndarray:
        """(H, W) uint8 class indices. Raises UserError where it cannot be read or is of another size."""


class _Folder(MaskedSet):
    def __init__(self, folder: Path) -> None:
        images, masks = (self._files(folder / name) for name in ("images", "masks"))
        if lonely := sorted(images.keys() ^ masks.keys()):
            present = images.get(lonely[0]) or masks[lonely[0]]
            other = "mask" if lonely[0] in images else "image"
            raise UserError(
                f"{present} has no {other} of the same stem; {len(lonely)} files are alone"
            )
        if not images:
            raise UserError(f"{folder}: no images")
        self.pairs = [(images[stem], masks[stem]) for stem in sorted(images)]

    @staticmethod
    def _files(folder: Path) -> dict[str, Path]:
        files = existing_folder(folder).iterdir()
        return {path.stem: path for path in files if path.is_file() and path.name[0] != "."}

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, i: int) -> Image8:
        return decode(self.pairs[i][0], str(self.pairs[i][0]))

    def mask(self, i: int) -> np.ndarray:
        return _mask(self.pairs[i][1], str(self.pairs[i][1]), self.image(i))


class _Parquet(MaskedSet):
    def __init__(self, files: list[Path]) -> None:
        self.folder = files[0].parent
        try:
            table = pq.ParquetDataset(files).read(columns=["image", "mask"])
        except Exception as error:  # pyarrow raises almost anything
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{files[0]}: no columns image and mask ({line})") from None
        self.columns = {name: table.column(name) for name in ("image", "mask")}

    def __len__(self) -> int:
        return len(self.columns["image"])

    def _bytes(self, name: str, i: int) -> bytes:
        value = self.columns[name][i].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise UserError(f"{self.folder} row {i}: column {name} holds no encoded image")
        return data

    def image(self, i: int) -> Image8:
        return decode(self._bytes("image", i), f"{self.folder} row {i}")

    def mask(self, i: int) -> np.ndarray:
        return _mask(BytesIO(self._bytes("mask", i)), f"{self.folder} row {i}", self.image(i))


class _Scenes(MaskedSet):
    def __init__(self, split: str) -> None:
        source = open_source("embedded")
        garments = source.train if split == "train" else source.test
        assert garments.labels is not None
        order = rng.permutation(len(garments), seed=0, epoch=0, stream=f"scenes {split}")
        self.garments, self.labels = garments, garments.labels
        self.chosen = order[: 4 * _SCENES[split]].view(-1, 2, 2).tolist()

    def __len__(self) -> int:
        return len(self.chosen)

    def image(self, i: int) -> Image8:
        rows = [[self.garments.read(index) for index in row] for row in self.chosen[i]]
        return np.concatenate([np.concatenate(row, axis=1) for row in rows])

    def mask(self, i: int) -> np.ndarray:
        levels = self.image(i)[:, :, 0]
        half = levels.shape[0] // 2
        classes = np.kron(1 + self.labels[self.chosen[i]], np.ones((half, half), dtype=np.uint8))
        return np.where(levels >= _FOREGROUND, classes, 0).astype(np.uint8)


def open_masked(source: str) -> tuple[MaskedSet, MaskedSet]:
    """Training and test set of a source; UserError where it is none, or a split is missing."""
    scheme, _, argument = source.partition(":")
    if source == "scenes":
        return _Scenes("train"), _Scenes("test")
    if scheme not in ("folder", "parquet") or not argument:
        raise UserError(f"segment.source={source}: allowed: scenes, folder:PATH, parquet:PATH")
    path = existing_folder(Path(argument).expanduser())
    splits: dict[str, Any]
    if scheme == "folder":
        splits = split_folders(path)
    else:
        names = ("train", *_TESTS)
        splits = {name: files for name in names if (files := sorted(path.glob(f"{name}*.parquet")))}
    test = next((name for name in _TESTS if name in splits), None)
    if "train" not in splits or test is None:
        raise UserError(
            f"{path}: needed are train and one of {', '.join(_TESTS)}; found {', '.join(splits) or 'none'}"
        )
    readers = {"folder": _Folder, "parquet": _Parquet}
    return readers[scheme](splits["train"]), readers[scheme](splits[test])


def _mask(file: Path | BytesIO, location: str, image: Image8) -> np.ndarray:
    """A mask's class indices, (H, W) uint8; a palette's colours are of no matter."""
    try:
        with Image.open(file) as opened:
            mode, pixels = opened.mode, np.asarray(opened)
    except Exception as error:  # a broken file makes decoders raise almost anything
        raise UserError(f"{location}: unreadable mask ({str(error).splitlines()[0]})") from None
    if mode not in ("L", "P", "1"):
        raise UserError(
            f"{location}: a mask of mode {mode}; needed are class indices, grey or with a palette"
        )
    if pixels.shape != image.shape[:2]:
        raise UserError(f"{location}: mask of {pixels.shape}, its image is {image.shape[:2]}")
    return pixels.astype(np.uint8)
