"""Correctness on each test image, packed as bits in an `.npz`: readout -> (N / 8,) uint8."""

import io
import zipfile
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mim_bench.errors import UserError
from mim_bench.files import check_regular, replacing

MAX_BYTES = 1 << 28


def write_packed(arrays: Path, correct: Mapping[str, np.ndarray]) -> None:
    packed: dict[str, Any] = {key: np.packbits(bits) for key, bits in correct.items()}
    with replacing(arrays) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **packed)


def read_packed(arrays: Path, readouts: Collection[str]) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` by name, after a look at the size that it declares."""
    check_regular(arrays, MAX_BYTES)
    try:
        with zipfile.ZipFile(arrays) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
            if declared > MAX_BYTES:
                raise ValueError(f"{declared:,} bytes unpacked, at most {MAX_BYTES:,} are expected")
            correct = {}
            for name in readouts:
                correct[name] = _array(archive.read(f"{name}.npy"))
            return correct
    # a damaged archive makes zipfile, zlib and numpy raise almost anything
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{arrays} cannot be read: {reason}") from None


def _array(content: bytes) -> np.ndarray:
    """Array that `np.load` would make of the content of a `.npy` file of version 1.0, as `np.savez` writes it."""
    offset = 10 + int.from_bytes(content[8:10], "little")
    shape, dtype = _layout(content[:offset])
    return np.frombuffer(content, dtype, offset=offset).reshape(shape)


@lru_cache
def _layout(head: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type from the head of a `.npy` file: thousands of files have the same."""
    file = io.BytesIO(head)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("no array of version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype
