"""One encoded image to (H, W, C) uint8, and a channel count to another. Pillow decodes.

Channels: palette, CMYK and the like become RGB, alpha is dropped, grey stays one channel, 1-bit is
grey with levels 0 and 255. Of 16-bit levels the high byte is kept, as Pillow itself does for 16-bit
colour. Any number of channels comes from `.npy` files: (H, W) or (H, W, C), uint8 or uint16. EXIF
orientation is not applied (torchvision's folders do not either).
"""

import stat
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mim_bench.data.resample import Image8
from mim_bench.errors import UserError

_GREY = ("1", "L", "LA", "La")
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def _high_byte(array: np.ndarray) -> np.ndarray:
    if array.min() < 0 or array.max() > 65535:
        raise ValueError(f"levels {array.min()} to {array.max()}, not 16-bit")
    return (array.astype(np.int64) >> 8).astype(np.uint8)


def _pillow(file: BytesIO | Path) -> np.ndarray:
    with Image.open(file) as image:
        if image.mode in _DEEP:
            return _high_byte(np.asarray(image))
        if image.mode == "F":
            raise ValueError("floating-point pixels, whose range is unknown")
        mode = "L" if image.mode in _GREY else "RGB"
        return np.asarray(image if image.mode == mode else image.convert(mode))


def _numpy(file: Path) -> np.ndarray:
    array = np.load(file, allow_pickle=False)
    if array.dtype == np.uint16:
        array = _high_byte(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"{array.dtype} of shape {array.shape}, not 8- or 16-bit (H, W[, C])")
    return array


def decode(data: bytes | Path, location: str) -> Image8:
    """Encoded bytes or a file -> (H, W, C) uint8; UserError naming `location` if that fails."""
    try:
        if isinstance(data, Path) and not stat.S_ISREG(data.stat().st_mode):
            file_type = "a folder" if data.is_dir() else "a pipe, socket or device"
            raise ValueError(f"{file_type}, not a regular file")
        if isinstance(data, Path) and data.suffix.lower() == ".npy":
            array = _numpy(data)
        else:
            array = _pillow(data if isinstance(data, Path) else BytesIO(data))
    except FileNotFoundError:
        raise UserError(f"{location}: unreadable image (no such file)") from None
    except UnidentifiedImageError:
        raise UserError(f"{location}: unreadable image (no format that Pillow knows)") from None
    except Exception as error:  # a broken file makes decoders raise almost anything
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{location}: unreadable image ({lines[0]})") from error
    return array[:, :, None] if array.ndim == 2 else array


def fit_channels(image: Image8, num_channels: int, location: str) -> Image8:
    """(H, W, C) -> (H, W, num_channels): grey is repeated, colour becomes luma; else UserError."""
    num_present = image.shape[2]
    if num_present == num_channels:
        return image
    if (num_present, num_channels) == (1, 3):
        return np.repeat(image, 3, axis=2)
    if (num_present, num_channels) == (3, 1):
        return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
    raise UserError(f"{location}: {num_present} channels, where the others have {num_channels}")
