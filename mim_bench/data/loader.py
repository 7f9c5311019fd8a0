"""Batches cut by Pillow, in this process or in DataLoader workers.

Each piece of work carries everything that decides its pixels (crop, hook, seed, epoch, indices), so
workers have no state, and their number and order change nothing.

Legend: B images of a batch, C channels, H W source size, h w output size.
"""

import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mim_bench.data.crop import Crop, EvalCrop
from mim_bench.data.resample import Image8, cut
from mim_bench.errors import UserError

Hook = Callable[[Image8, int], Image8]
"""(h, w, C) uint8 after the crop, sample index -> (h, w, C) uint8; pickle-able if workers are used."""
_NUM_DECODED = 64
"""Images that are held decoded at a time: large photographs are cut before the next are read."""


class Reader(Protocol):
    """A source of images by index."""

    def read(self, i: int) -> Image8:
        """Image `i`, (H, W, C) uint8."""
        ...


@dataclass(frozen=True)
class BatchRequest:
    """One batch that is to be cut."""

    index: Tensor
    """(B,) int64."""
    crop: Crop | EvalCrop
    seed: int
    epoch: int
    hook: Hook | None = None


@dataclass(frozen=True)
class _Failure:
    """A UserError on its way out of a worker, where an exception would become a page of text."""

    line: str


_Cut = tuple[Tensor | _Failure, Tensor]
"""Images or why there are none, and the (B,) indices."""


def hooked(images: Tensor, index: Tensor, hook: Hook) -> Tensor:
    """(B, C, h, w) uint8 on the CPU, image by image through `hook`."""
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    for i, sample in enumerate(index.tolist()):
        image = hook(images[i].permute(1, 2, 0).contiguous().numpy(), sample)
        out[i] = torch.from_numpy(image.copy()).permute(2, 0, 1)
    return out


def cut_batch(reader: Reader, request: BatchRequest) -> Tensor:
    """(B, C, h, w) uint8 on the CPU."""
    parts: list[Tensor] = []
    for index in request.index.split(_NUM_DECODED):
        images = [reader.read(i) for i in index.tolist()]
        sizes = torch.tensor([image.shape[:2] for image in images])
        boxes, flips = request.crop.plan(index, sizes, seed=request.seed, epoch=request.epoch)
        parts.append(
            torch.from_numpy(cut(images, boxes, flips, request.crop.size)).permute(0, 3, 1, 2)
        )
    images = torch.cat(parts).contiguous()
    return images if request.hook is None else hooked(images, request.index, request.hook)


class _Cutter(Dataset[_Cut]):
    """The part of a batch that runs in a worker."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitem__(self, request: BatchRequest) -> _Cut:  # type: ignore[override]
        try:
            return cut_batch(self.reader, request), request.index
        except UserError as error:
            return _Failure(str(error)), request.index


class _Order(Sampler[BatchRequest]):
    """The work of the present pass; replaced between passes while the workers stay."""

    def __init__(self) -> None:
        self.requests: Iterable[BatchRequest] = ()

    def __iter__(self) -> Iterator[BatchRequest]:  # type: ignore[override]
        return iter(self.requests)


class BatchReader:
    """Workers that stay from pass to pass, and are replaced when a pass was left half-way."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._idle: dict[tuple[int, bool], tuple[DataLoader[_Cut], _Order]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"_reader": self._reader, "_idle": {}}

    def batches(
        self, requests: Iterable[BatchRequest], *, num_workers: int, pin: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields ((B, C, h, w) uint8 on the CPU, (B,) int64 indices), in the order of `requests`."""
        if num_workers == 0:
            for request in requests:
                images = cut_batch(self._reader, request)
                yield images.pin_memory() if pin else images, request.index
            return
        key = (num_workers, pin)
        loader, order = self._idle.pop(key, None) or self._start(num_workers, pin)
        order.requests = map(_checked, requests)
        for images, index in loader:
            if isinstance(images, _Failure):
                raise UserError(images.line)
            yield images, index
        self._idle[key] = (loader, order)

    def _start(self, num_workers: int, pin: bool) -> tuple[DataLoader[_Cut], _Order]:
        order = _Order()
        loader = DataLoader(
            _Cutter(self._reader),
            batch_size=None,
            sampler=order,
            num_workers=num_workers,
            pin_memory=pin,
            persistent_workers=True,
            generator=torch.Generator(),  # else each pass would advance torch's global state
            worker_init_fn=_in_worker,
        )
        return loader, order


def _in_worker(number: int) -> None:
    """Ctrl-C is the parent's to handle; a termination ends the worker at once, whatever it inherited."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _checked(request: BatchRequest) -> BatchRequest:
    """Raises here what would otherwise fail unseen in the queue's thread and leave workers waiting."""
    pickle.dumps(request.hook)
    return request
