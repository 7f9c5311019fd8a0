"""Images that are evaluated on although they were trained on: the same pixels, or the same file.

In memory every image is compared; of images that stream, 256 evenly spaced ones are, by the content of their
files, so that the check stays cheap for a million of them.

Legend: N images, P bytes of an image.
"""

import logging

import numpy as np
import torch

from mim_bench.data.image_set import ImageSet, evenly
from mim_bench.data.split import Split

_logger = logging.getLogger(__name__)
_NUM_STREAMED = 256
_NUM_BYTES = 64


def count_duplicates(train: Split, evaluated: Split, source: str) -> int:
    """Number of the evaluated images that were compared and are training images too.

    Warns of any.
    """
    if train.pixels is not None and evaluated.pixels is not None:
        compared = evaluated.num_images
        num_duplicates = _same_pixels(train.pixels, evaluated.pixels)
    else:
        positions = evenly(evaluated.num_images, _NUM_STREAMED)
        compared = len(positions)
        num_duplicates = _same_files(train.image_set, evaluated.image_set, positions)
    if num_duplicates:
        _logger.warning(
            "%s: %d of %d evaluated images are training images too",
            source,
            num_duplicates,
            compared,
        )
    return num_duplicates


def _same_pixels(train: torch.Tensor, evaluated: torch.Tensor) -> int:
    """Number of evaluated images whose pixels equal those of a training image; both (N, C, H, W) uint8."""
    if train.shape[1:] != evaluated.shape[1:]:
        return 0
    rows = [pixels.flatten(1).cpu().numpy() for pixels in (train, evaluated)]  # (N, P)
    keys = [_keys(pixels) for pixels in rows]
    candidates = np.flatnonzero(np.isin(keys[1], keys[0]))  # a few bytes agree: all are compared
    rows_by_key: dict[bytes, set[bytes]] = {}
    for index in np.flatnonzero(np.isin(keys[0], keys[1][candidates])):
        rows_by_key.setdefault(keys[0][index].tobytes(), set()).add(rows[0][index].tobytes())
    return sum(rows[1][i].tobytes() in rows_by_key[keys[1][i].tobytes()] for i in candidates)


def _keys(rows: np.ndarray) -> np.ndarray:
    """(N, P) uint8 -> (N,) a few evenly spaced bytes of each."""
    some = np.ascontiguousarray(rows[:, evenly(rows.shape[1], _NUM_BYTES)])
    return some.view(f"V{some.shape[1]}")[:, 0]


def _same_files(train: ImageSet, evaluated: ImageSet, positions: np.ndarray) -> int:
    sizes = {int(i): evaluated.content_size(int(i)) for i in positions}
    if train.content_size(0) is None or None in sizes.values():
        return 0
    by_size: dict[int | None, list[int]] = {size: [] for size in sizes.values()}
    for i in range(len(train)):
        if (size := train.content_size(i)) in by_size:
            by_size[size].append(i)
    contents = {
        size: {train.content(i) for i in indices} for size, indices in by_size.items() if indices
    }
    return sum(
        size in contents and evaluated.content(i) in contents[size] for i, size in sizes.items()
    )
