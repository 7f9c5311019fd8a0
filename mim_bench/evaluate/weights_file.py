"""Reading a file of weights that anybody made: a state dict, wherever it lies in it, and no code is run.

Legend: D width, p patch side.
"""

import argparse
import logging
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim_bench.errors import UserError
from mim_bench.train import checkpoint

_logger = logging.getLogger(__name__)
_OUTER = (
    "model", "state_dict", "teacher", "module", "model_ema", "state_dict_ema", "ema", "student",
)  # fmt: skip
"""Keys that weights lie under; of several in a file the first of these is taken. Of a teacher and a student
DINO evaluates the teacher; of weights and their moving average the weights are what was trained."""
_MARK = "patch_embed.proj.weight"
"""The tensor by which an encoder is recognised; what stands before its name is a wrapper's prefix."""
_scalar: Any = np.float64(0).__reduce__()[0]
_array: Any = np.zeros(1).__reduce__()[0]
_PLAIN = [
    argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, np.dtype,
    np.ndarray, _scalar, _array, (_scalar, "numpy.core.multiarray.scalar"),
    *{type(np.dtype(name)) for name in ("f8", "f4", "i8", "i4", "?")},
]  # fmt: skip
"""What training scripts write next to weights: command lines, paths, a best accuracy."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The encoder's tensors by timm's names, and others of the same model (head, decoder).

    Wrappers' prefixes (`module.`, `_orig_mod.`, `backbone.`, `encoder.`, ...) are taken off. Raises UserError in
    one line for what cannot be read, or holds no ViT encoder; then with the first names that there are.
    """
    if not path.exists() and not path.is_symlink():
        hint = "; download it first" if re.match(r"https?:", str(path)) else ""
        raise UserError(f"'{path}' does not exist{hint}")
    if not path.is_file() or path.stat().st_size == 0:
        raise UserError(f"{path} cannot be read as weights: no file, or an empty one")
    content: Any = (
        checkpoint.load_tensors(path)[0] if path.suffix == ".safetensors" else _unpickle(path)
    )
    content = _inside(content, path)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    marks = sorted((name for name in tensors if str(name).endswith(_MARK)), key=len)
    if not marks:
        shown = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise UserError(
            f"{path}: no ViT encoder by timm's names ({_MARK} is not there); it holds {shown}"
            + ", ..." * (len(content) > 5)
        )
    prefix = marks[0].removesuffix(_MARK)
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    if others := [name for name in content if name not in tensors or not name.startswith(prefix)]:
        _logger.info("%s: %d entries outside %r left out", path, len(others), prefix)
    return own


def _inside(content: Any, path: Path) -> Mapping[str, Any]:
    """The innermost state dict."""
    while isinstance(content, Mapping):
        if any(isinstance(name, str) and name.endswith(_MARK) for name in content):
            break
        there = [key for key in _OUTER if isinstance(content.get(key), Mapping)]
        if not there:
            break
        if len(there) > 1:
            _logger.warning(
                "%s: weights under %r are taken; there are also %s",
                path,
                there[0],
                ", ".join(there[1:]),
            )
        content = content[there[0]]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, no state dict")
    return content


def _unpickle(path: Path) -> Any:
    """The content of a `.pth` or `.bin`; torch's weights-only reader runs no code from the file."""
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:  # fmt: skip
        text = str(error).strip() or type(error).__name__
        if "Weights only load failed" in text or "TorchScript" in text:
            found = re.search(
                r"GLOBAL ([\w.]+) was|Unsupported class (\S+)|but got <class '([\w.]+)'", text
            )
            held = next(filter(None, found.groups())) if found else "more than tensors"
            raise UserError(
                f"{path} cannot be read as weights: it holds {held}, and reading that would run code; where you "
                "trust the file, save its state dict alone"
            ) from None
        raise UserError(f"{path} cannot be read as weights: {text.splitlines()[0]}") from None
