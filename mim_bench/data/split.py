"""The images of one split, in memory or streamed; either way the same pixels in the same order.

In memory: images of one size that take no more than `memory_gb` are decoded once to one uint8 tensor,
on the GPU if a quarter of its free memory holds them, and each batch is cropped there at once.
Streamed: images are read, decoded and cropped by Pillow as they are needed, by DataLoader workers.

Legend: N images, B images of a batch, C channels, H W source size, h w output size.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mim_bench.data.crop import Crop, EvalCrop
from mim_bench.data.image_set import ImageSet, Source, evenly, in_threads
from mim_bench.data.loader import BatchReader, BatchRequest, Hook, hooked
from mim_bench.data.resample import Image8, resample
from mim_bench.errors import UserError

_logger = logging.getLogger(__name__)
_NUM_PROBED = 64
_NUM_MEASURED = 10_000
_GPU_SHARE = 0.25
_LOW_LEVEL = 32
_DEPTH = "of 16-bit files the high byte is kept: levels of 8 or 12 bits in such a file must be scaled up first"


class _Varies(Exception):
    """The images are not all of one size."""


class _Pixels:
    """Decoded images as a `loader.Reader`."""

    def __init__(self, pixels: Tensor) -> None:
        """`pixels` (N, C, H, W) uint8 on the CPU."""
        self.pixels = pixels

    def read(self, i: int) -> Image8:
        return self.pixels[i].permute(1, 2, 0).numpy()


class Split:
    """The images of one split; `load_split` builds it."""

    def __init__(
        self,
        image_set: ImageSet,
        *,
        name: str,
        image_size: tuple[int, int] | None,
        num_channels: int,
        pixels: Tensor | None,
    ) -> None:
        """`pixels` (N, C, H, W) uint8 on any device, or None to stream from `image_set`."""
        self.name = name
        self.num_images = len(image_set)
        self.num_channels = num_channels
        self.num_skipped = image_set.num_skipped
        self.image_size = image_size
        """H, W in pixels; None where 64 evenly spaced images are not of one size."""
        self.labels = (
            None if image_set.labels is None else torch.from_numpy(image_set.labels.copy())
        )
        """(N,) int64 on the CPU, or None."""
        self.image_set = image_set
        self.pixels = pixels
        """(N, C, H, W) uint8, or None where images are streamed."""
        self._batch_reader: BatchReader | None = None

    @property
    def in_memory(self) -> bool:
        """True if the images are held decoded."""
        return self.pixels is not None

    @property
    def fingerprint(self) -> str:
        """sha256 of the images and labels, as the set defines it."""
        return self.image_set.fingerprint()

    def read(self, i: int) -> Image8:
        """Image `i`, uncropped, (H, W, C) uint8."""
        if self.pixels is None:
            return self.image_set.read(i)
        return self.pixels[i].permute(1, 2, 0).cpu().numpy()

    def batches(
        self,
        indices: Iterable[Tensor],
        crop: Crop | EvalCrop,
        *,
        device: torch.device | str,
        seed: int = 0,
        epoch: int = 0,
        num_workers: int = 0,
        per_image: Hook | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields for each (B,) int64 of sample indices: (B, C, h, w) uint8 on `device`, and the indices (CPU).

        Pixels depend on (seed, epoch, index), `crop` and `per_image`, on nothing else. `num_workers`
        processes do the streaming, or `per_image` if the data is in memory; 0 works in this process.
        Raises UserError naming the image where one cannot be read.
        """
        device = torch.device(device)
        if self.pixels is not None and (per_image is None or num_workers == 0):
            yield from self._from_memory(indices, crop, device, seed, epoch, per_image)
            return
        if self._batch_reader is None:
            on_cpu = None if self.pixels is None else _Pixels(self.pixels.cpu())
            self._batch_reader = BatchReader(on_cpu or self.image_set)
        requests = (BatchRequest(index, crop, seed, epoch, per_image) for index in indices)
        pin = device.type == "cuda"
        for images, index in self._batch_reader.batches(requests, num_workers=num_workers, pin=pin):
            yield images.to(device, non_blocking=True), index

    def _from_memory(
        self,
        indices: Iterable[Tensor],
        crop: Crop | EvalCrop,
        device: torch.device,
        seed: int,
        epoch: int,
        per_image: Hook | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        pixels = self.pixels
        assert pixels is not None
        for index in indices:
            sizes = torch.tensor(pixels.shape[2:]).expand(len(index), 2)
            boxes, flips = crop.plan(index, sizes, seed=seed, epoch=epoch)
            images = pixels[index.to(pixels.device, non_blocking=True)]
            if pixels.device.type == "cpu" and device.type == "cuda":
                images = images.pin_memory().to(device, non_blocking=True)
            images = resample(images, boxes, flips, crop.size)
            if per_image is not None:
                images = hooked(images.cpu(), index, per_image)
            yield images.to(device, non_blocking=True), index


def _decode_all(image_set: ImageSet, shape: tuple[int, int, int]) -> Tensor:
    """(N, C, H, W) uint8. Raises _Varies at the first image whose (H, W, C) is not `shape`."""
    height, width, channels = shape
    pixels = torch.empty((len(image_set), channels, height, width), dtype=torch.uint8)
    out = pixels.numpy()

    def fill(positions: np.ndarray) -> None:
        for i in positions.tolist():
            image = image_set.read(i)
            if image.shape != shape:
                raise _Varies
            out[i] = image.transpose(2, 0, 1)

    for _ in in_threads(fill, np.arange(len(image_set))):
        pass
    return pixels


def load_split(
    image_set: ImageSet,
    *,
    device: torch.device | str,
    memory_gb: float = 8.0,
    name: str = "images",
) -> Split:
    """Decides between memory and streaming, and decodes in the first case.

    `memory_gb`: 10^9 bytes of 8-bit pixels, at most; 0 always streams. `name` is for the log. Raises
    UserError for an empty set, and naming the image where one cannot be read.
    """
    device = torch.device(device)
    if len(image_set) == 0:
        raise UserError(f"{name}: no images")
    probed = [image_set.read(int(i)) for i in evenly(len(image_set), _NUM_PROBED)]
    _check_levels(probed, name)
    shapes = {image.shape for image in probed}
    channels = {shape[2] for shape in shapes}
    if len(channels) > 1:
        raise UserError(
            f"{name}: images of {sorted(channels)} channels; settle_channels comes first"
        )
    shape = shapes.pop() if len(shapes) == 1 else None
    pixels = None
    if shape is not None and len(image_set) * np.prod(shape) <= memory_gb * 1e9:
        try:
            pixels = _decode_all(image_set, shape)
        except _Varies:
            shape = None
    if pixels is not None and device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        if pixels.nbytes <= _GPU_SHARE * free_bytes:
            pixels = pixels.to(device)
    storage = "streamed" if pixels is None else f"in memory on {pixels.device}"
    _logger.info("%s: %d images, %s", name, len(image_set), storage)
    return Split(
        image_set,
        name=name,
        image_size=None if shape is None else shape[:2],
        num_channels=channels.pop(),
        pixels=pixels,
    )


def _check_levels(images: Sequence[Image8], name: str) -> None:
    """Levels far below their range are those of another bit depth than that of the file."""
    low, high = min(int(image.min()) for image in images), max(int(image.max()) for image in images)
    if low == high:
        raise UserError(f"{name}: every pixel of {len(images)} images is {low} of 255; {_DEPTH}")
    if high < _LOW_LEVEL:
        _logger.warning("%s: levels from %d to %d of 255; %s", name, low, high, _DEPTH)


def normalisation(
    split: Split, source: Source | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of images in [0, 1], rounded to 4 digits.

    Over all pixels of at most 10,000 evenly spaced images, from exact counts of levels, so the same on
    every machine; the constants that the literature fixes if `source` has them. A constant channel gets
    1/255 for its deviation.
    """
    if source is not None and source.normalisation is not None:
        return source.normalisation

    def count(positions: np.ndarray) -> np.ndarray:
        levels = np.zeros((split.num_channels, 256), dtype=np.int64)
        for i in positions.tolist():
            image = split.read(i)
            for c in range(split.num_channels):
                levels[c] += np.bincount(image[:, :, c].ravel(), minlength=256)
        return levels

    counts = sum(in_threads(count, evenly(split.num_images, _NUM_MEASURED)))
    means, stds = [], []
    for row in np.asarray(counts).tolist():
        num = sum(row)
        total = sum(level * n for level, n in enumerate(row))
        squares = sum(level * level * n for level, n in enumerate(row))
        variance = (num * squares - total * total) / (
            num * num
        )  # exact integers up to the division
        means.append(round(total / num / 255, 4))
        stds.append(round(max(variance**0.5, 1.0) / 255, 4))
    return tuple(means), tuple(stds)
