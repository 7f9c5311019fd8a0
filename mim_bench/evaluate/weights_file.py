"""Reading a file of weights that anybody made: a state dict, wherever it lies in it, and no code is run.

Legend: D width, p patch side.
"""

import argparse
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim_bench.errors import UserError
from mim_bench.evaluate.encoders.families import FAMILIES, Family, marks, recognise
from mim_bench.train import checkpoint

_OUTER = (
    "model", "state_dict", "teacher", "module", "model_ema", "state_dict_ema", "ema", "student",
)  # fmt: skip
"""Keys that weights lie under; of several in a file the first of these is taken. Of a teacher and a student
DINO evaluates the teacher; of weights and their moving average the weights are what was trained."""
_scalar: Any = np.float64(0).__reduce__()[0]
_array: Any = np.zeros(1).__reduce__()[0]
_PLAIN = [
    argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, np.dtype,
    np.ndarray, _scalar, _array, (_scalar, "numpy.core.multiarray.scalar"),
    *{type(np.dtype(name)) for name in ("f8", "f4", "i8", "i4", "?")},
]  # fmt: skip
"""Types that training scripts write next to weights: command lines, paths, a best accuracy."""


_NO_WEIGHTS = {
    b"version https://git-lfs": "it is a pointer of Git LFS; `git lfs pull` fetches the file",
    b"<!doctype": "it is a web page; the download was of a page about the file",
    b"<html": "it is a web page; the download was of a page about the file",
    b"\xff\xd8\xff": "it is a JPEG image",
    b"\x89png": "it is a PNG image",
    b"\x89hdf": "it is a file of Keras or HDF5; needed are weights of PyTorch",
}
"""Beginnings of files that downloads leave behind, and what they are."""
_TORCH = (b"PK", b"\x80")
"""Beginnings of what `torch.save` writes: a zip file, or a pickle of older versions."""


@dataclass(frozen=True)
class Weights:
    """The state dict of a file."""

    tensors: dict[str, Tensor]
    """Tensors by the file's names, wrappers' prefixes (`module.`, `_orig_mod.`, `backbone.`, `vit.`, ...) taken off."""
    family: Family
    others: tuple[str, ...]
    """Names of what lies outside the prefix: heads, decoders, an epoch."""
    notes: tuple[str, ...]
    """Choices that reading it took."""


def read_weights(path: Path, model_type: str | None = None) -> Weights:
    """The tensors of the model in a file, and whose they are.

    Args:
        model_type: Hugging Face's word for the architecture, where a `config.json` states it.

    Raises UserError in one line for what cannot be read, or holds no ViT encoder; then with the first names
    that there are.
    """
    if not path.exists() and not path.is_symlink():
        hint = "; download it first" if re.match(r"https?:", str(path)) else ""
        raise UserError(f"'{path}' does not exist{hint}")
    if not path.is_file() or path.stat().st_size == 0:
        raise UserError(f"{path} cannot be read as weights: no file, or an empty one")
    with path.open("rb") as file:
        beginning = file.read(64).lstrip().lower()
    for signature, description in _NO_WEIGHTS.items():
        if beginning.startswith(signature):
            raise UserError(f"{path} cannot be read as weights: {description}")
    content: Any = (
        checkpoint.load_tensors(path)[0] if path.suffix == ".safetensors" else _unpickle(path)
    )
    content, notes = _inside(content, path)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    family = recognise(tensors, model_type)
    if family is None:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise UserError(
            f"{path}: no ViT encoder of a known family (none of {', '.join(_MARKS)} is there); it holds {keys}"
            + ", ..." * (len(content) > 5)
        )
    prefix = marks(tensors, family.naming)[0].removesuffix(family.naming.mark)
    stripped = {
        name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)
    }
    others = [str(name) for name in content if not str(name).startswith(prefix)]
    others += [
        str(name) for name in content if str(name).startswith(prefix) and name not in tensors
    ]
    return Weights(stripped, family, tuple(others), notes)


_MARKS = tuple(dict.fromkeys(family.naming.mark for family in FAMILIES))


def _inside(content: Any, path: Path) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """The innermost state dict, and what was passed by on the way to it."""
    notes = []
    while isinstance(content, Mapping):
        if any(isinstance(name, str) and name.endswith(_MARKS) for name in content):
            break
        wrappers = [key for key in _OUTER if isinstance(content.get(key), Mapping)]
        if not wrappers:
            break
        if len(wrappers) > 1:
            also = ", ".join(wrappers[1:])
            notes.append(f"weights under '{wrappers[0]}' are taken; there are also {also}")
        content = content[wrappers[0]]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, no state dict")
    return content, tuple(notes)


def _unpickle(path: Path) -> Any:
    """The content of a `.pth` or `.bin`; torch's weights-only reader runs no code from the file."""
    with path.open("rb") as file:
        if not file.read(4).startswith(_TORCH):
            raise UserError(f"{path} is no file of weights that torch wrote")
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:  # fmt: skip
        text = str(error).strip() or type(error).__name__
        if "Weights only load failed" in text or "TorchScript" in text:
            match = re.search(
                r"GLOBAL ([\w.]+) was|Unsupported class (\S+)|but got <class '([\w.]+)'", text
            )
            class_name = next(filter(None, match.groups())) if match else "more than tensors"
            raise UserError(
                f"{path} cannot be read as weights: it holds {class_name}, and reading that would run code; where you "
                "trust the file, save its state dict alone"
            ) from None
        raise UserError(
            f"{path} cannot be read as weights: it is cut short or damaged; copy it again"
        ) from None
