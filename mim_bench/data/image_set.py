"""A set of images: the one interface between where images lie and everything that uses them.

Sets are pickle-able, so DataLoader workers can hold them. Choosing from a set (`limit`, `hold_out`,
`drop_bad`) goes by a hash of the position, class by class, and gives the same choice everywhere.

Legend: N images of a set, H W an image's size, C channels.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from mim_bench import rng
from mim_bench.cores import num_cores
from mim_bench.data.decode import fit_channels
from mim_bench.data.resample import Image8
from mim_bench.errors import UserError

T = TypeVar("T")
_NUM_PROBED = 64


class ImageSet(ABC):
    """Images that are read one by one, with labels or without."""

    labels: np.ndarray | None
    """(N,) int64 class indices; None where the data has none."""
    num_skipped: int = 0
    """Unreadable images that were left out."""
    num_channels: int | None = None
    """Channels that `read` converts to; None: as in the file. Set by `settle_channels`."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def decode(self, i: int) -> Image8:
        """Image `i` as stored, (H, W, C) uint8."""

    @abstractmethod
    def locate(self, i: int) -> str:
        """File name or row of image `i`, for error lines."""

    def content_size(self, i: int) -> int | None:
        """Bytes of image `i` as stored; None where only pixels can be compared."""
        return None

    def content(self, i: int) -> bytes:
        """Image `i` as stored, where `content_size` is known."""
        raise NotImplementedError

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 of content and labels; each set says what exactly it covers."""

    def read(self, i: int) -> Image8:
        """Image `i`, (H, W, C) uint8 with `num_channels` channels. Raises UserError naming the image."""
        image = self.decode(i)
        if self.num_channels is None:
            return image
        return fit_channels(image, self.num_channels, self.locate(i))


@dataclass(frozen=True)
class Source:
    """A data source that was opened."""

    name: str
    """Name of the source as `--data` takes it, paths absolute."""
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...] | None
    """Names by class index; None where there are no labels or no names."""
    split_rule: str
    """Origin of the test images, in words for the record."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and std per channel that the literature fixes for this data; None: to be computed."""


class Subset(ImageSet):
    """Some images of another set. Fingerprint: the other set's and the positions."""

    def __init__(self, base: ImageSet, positions: np.ndarray, num_skipped: int = 0) -> None:
        self.base = base
        self.positions = positions
        self.num_skipped = base.num_skipped + num_skipped
        self.num_channels = base.num_channels
        self.labels = None if base.labels is None else base.labels[positions]

    def __len__(self) -> int:
        return len(self.positions)

    def decode(self, i: int) -> Image8:
        return self.base.decode(int(self.positions[i]))

    def locate(self, i: int) -> str:
        return self.base.locate(int(self.positions[i]))

    def content_size(self, i: int) -> int | None:
        return self.base.content_size(int(self.positions[i]))

    def content(self, i: int) -> bytes:
        return self.base.content(int(self.positions[i]))

    def fingerprint(self) -> str:
        positions = np.ascontiguousarray(self.positions, dtype="<i8").tobytes()
        return hashlib.sha256(self.base.fingerprint().encode() + positions).hexdigest()


class ArraySet(ImageSet):
    """Images that are already one array. Fingerprint: every pixel and label."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None, name: str) -> None:
        """`images` (N, H, W) or (N, H, W, C) uint8, `labels` (N,)."""
        self.images = images if images.ndim == 4 else images[..., None]
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.name = name

    def __len__(self) -> int:
        return len(self.images)

    def decode(self, i: int) -> Image8:
        return self.images[i]

    def locate(self, i: int) -> str:
        return f"{self.name} image {i}"

    def fingerprint(self) -> str:
        content = hashlib.sha256(repr(self.images.shape).encode())
        for start in range(0, len(self), 4096):
            content.update(np.ascontiguousarray(self.images[start : start + 4096]).tobytes())
        if self.labels is not None:
            content.update(self.labels.astype("<i8").tobytes())
        return content.hexdigest()


def in_threads(
    function: Callable[[np.ndarray], T], positions: np.ndarray, chunk: int = 256
) -> Iterator[T]:
    """`function` of chunks of `positions`, in order; decoding leaves Python's lock, so threads help."""
    chunks = [positions[start : start + chunk] for start in range(0, len(positions), chunk)]
    with ThreadPoolExecutor(max_workers=num_cores()) as pool:
        try:
            yield from pool.map(function, chunks)
        finally:
            pool.shutdown(cancel_futures=True)


def evenly(num_images: int, num: int) -> np.ndarray:
    """At most `num` positions out of `num_images`, evenly spaced, ascending."""
    return np.unique(np.linspace(0, num_images - 1, min(num, num_images)).round().astype(np.int64))


def settle_channels(sets: Sequence[ImageSet]) -> None:
    """Makes `sets` read the channel count that most of 64 evenly spaced images of the first one have.

    Grey and colour are then converted to each other; any other count is refused when it is met.
    """
    first = sets[0]
    counts = Counter(first.decode(int(i)).shape[2] for i in evenly(len(first), _NUM_PROBED))
    num_channels = max(counts, key=lambda count: (counts[count], count))
    for image_set in sets:
        image_set.num_channels = num_channels


def drop_bad(image_set: ImageSet) -> ImageSet:
    """The set without its unreadable images, which are counted. Decodes every image once."""

    def readable(positions: np.ndarray) -> list[bool]:
        return [_is_readable(image_set, int(i)) for i in positions]

    keep = [flag for part in in_threads(readable, np.arange(len(image_set))) for flag in part]
    if all(keep):
        return image_set
    positions = np.flatnonzero(keep)
    return Subset(image_set, positions, num_skipped=len(keep) - len(positions))


def _is_readable(image_set: ImageSet, i: int) -> bool:
    try:
        image_set.decode(i)
    except UserError:
        return False
    return True


def _hashed(num: int, *, seed: int, stream: str) -> np.ndarray:
    """(num,) floats in [0, 1) by position; ties are broken by position wherever they matter."""
    return rng.uniform(torch.arange(num), 1, seed=seed, epoch=0, stream=stream)[:, 0].numpy()


def _classes(image_set: ImageSet) -> list[np.ndarray]:
    """Positions of each class; all of them where there are no labels."""
    if image_set.labels is None:
        return [np.arange(len(image_set))]
    return [np.flatnonzero(image_set.labels == label) for label in np.unique(image_set.labels)]


def limit(image_set: ImageSet, num: int) -> ImageSet:
    """At most `num` images, classes as even as they can be, chosen by hash, in the set's order."""
    if num >= len(image_set):
        return image_set
    value = _hashed(len(image_set), seed=0, stream="limit")
    rank = np.empty(len(image_set), dtype=np.int64)
    for members in _classes(image_set):
        rank[members[np.argsort(value[members], kind="stable")]] = np.arange(len(members))
    return Subset(image_set, np.sort(np.lexsort((value, rank))[:num]))


def hold_out(
    image_set: ImageSet, fraction: float, seed: int = 0, stream: str = "hold_out"
) -> tuple[Subset, Subset]:
    """(the rest, held out): `fraction` of each class by hash, at least one image of each if it has two.

    Where no class has two images, and where there are no labels, `fraction` of all. `fraction` in
    (0, 1). Raises UserError where one of the two would be empty.
    """
    value = _hashed(len(image_set), seed=seed, stream=stream)
    out = np.zeros(len(image_set), dtype=bool)
    groups = _classes(image_set)
    if all(len(members) == 1 for members in groups):
        groups = [np.arange(len(image_set))]
    for members in groups:
        if len(members) > 1:
            num = min(max(round(fraction * len(members)), 1), len(members) - 1)
            out[members[np.argsort(value[members], kind="stable")[:num]]] = True
    if not out.any():
        raise UserError(f"{len(image_set)} images are too few to hold {fraction:.0%} of them out")
    return Subset(image_set, np.flatnonzero(~out)), Subset(image_set, np.flatnonzero(out))
