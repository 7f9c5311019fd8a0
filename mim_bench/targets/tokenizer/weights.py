"""Reads the weights of a DALL-E encoder from a local file without running code from it.

Three kinds of file: the published `encoder.pkl`, which is a pickled module (PyTorch's zip format or the
stream format used before 1.6); a pickled state dict; safetensors.

A pickle can name any function and have it called. The reader below knows the 13 names that such a
module needs and refuses every other one, by name. What it puts in their place are descriptions without
behaviour, built anew for each file: no class or function of torch is ever handed to the file.
Tensors are made from the descriptions afterwards, with their bounds checked.
"""

import collections
import io
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from mim_bench.errors import UserError
from mim_bench.files import file_sha256
from mim_bench.targets.tokenizer.encoder import Encoder

_MODULE_NAMES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.linear.Identity",
)
_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_VERSION = 1001
_MAX_NESTING = 8


@dataclass
class _Storage:
    """A run of float32 numbers; `data` is filled in when it is read."""

    num_values: int
    data: Tensor | None = None


@dataclass
class _Tensor:
    """Description of a tensor in a pickle."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def build(self, name: str) -> Tensor:
        numbers = (self.offset, *self.shape, *self.stride)
        if any(type(n) is not int or n < 0 for n in numbers) or len(self.shape) != len(self.stride):
            raise ValueError(f"tensor {name} has an impossible shape")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if self.storage.data is None or last >= self.storage.num_values or 0 in self.shape:
            raise ValueError(f"tensor {name} lies outside of its storage")
        return self.storage.data.as_strided(self.shape, self.stride, self.offset).clone()


def _stand_ins() -> dict[str, Any]:
    """The 13 names -> things without behaviour, new ones at each call."""

    def device(*_: object) -> str:
        return "cpu"

    def parameter(data: object, *_: object) -> object:
        return data

    def tensor(storage: object, offset: Any, shape: Any, stride: Any, *_: object) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise TypeError("a tensor without a storage")
        return _Tensor(storage, offset, tuple(shape), tuple(stride))

    return {
        **{name: type(name.rpartition(".")[2], (), {}) for name in _MODULE_NAMES},
        "collections.OrderedDict": collections.OrderedDict,
        "__builtin__.set": set,
        "builtins.set": set,
        "torch.device": device,
        "torch.FloatStorage": type("FloatStorage", (), {}),
        "torch._utils._rebuild_parameter": parameter,
        "torch._utils._rebuild_tensor_v2": tensor,
    }


class _Reader(pickle.Unpickler):
    """An unpickler that refuses every name but those of `_stand_ins`."""

    def __init__(
        self, file: BinaryIO, path: Path, storage: Callable[[str, int, object], _Storage] | None
    ) -> None:
        super().__init__(file, encoding="utf-8")
        self._path = path
        self._allowed = _stand_ins()
        self._storage = storage

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name}.{global_name}"
        if name not in self._allowed:
            raise UserError(
                f"weights file {self._path} is refused: it names '{name}', which an encoder "
                "does not need and which could run code; nothing of it was run"
            )
        return self._allowed[name]

    def persistent_load(self, pid: Any, /) -> Any:
        tag, *arguments = pid
        if tag == "module":  # stream format: (class, source file, source text)
            return arguments[0]
        if tag != "storage" or self._storage is None:
            raise pickle.UnpicklingError(f"unknown persistent id {tag!r}")
        storage_class, key, _device, num_values, *view = arguments
        if storage_class is not self._allowed["torch.FloatStorage"]:
            raise pickle.UnpicklingError("a storage that is not of float32")
        if type(num_values) is not int or num_values < 0:
            raise pickle.UnpicklingError("a storage of impossible size")
        return self._storage(str(key), num_values, view[0] if view else None)


def _floats(data: bytes) -> Tensor | None:
    return torch.frombuffer(bytearray(data), dtype=torch.float32) if data else None


def _read_zip(path: Path) -> Any:
    """The object in a file of PyTorch's zip format."""
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip archive without a PyTorch pickle")
        folder = pickles[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("big-endian numbers")
        storages: dict[str, _Storage] = {}

        def storage(key: str, num_values: int, _view: object) -> _Storage:
            if key not in storages:
                info = archive.getinfo(f"{folder}data/{key}")
                if info.file_size != 4 * num_values:
                    raise ValueError(f"storage {key} has {info.file_size} bytes")
                storages[key] = _Storage(num_values, _floats(archive.read(info)))
            return storages[key]

        return _Reader(io.BytesIO(archive.read(pickles[0])), path, storage).load()


def _read_stream(path: Path) -> Any:
    """The object in a file of the format before PyTorch 1.6: pickles, then the numbers."""
    size = path.stat().st_size
    storages: dict[str, _Storage] = {}
    views: list[tuple[_Storage, str, int]] = []

    def storage(key: str, num_values: int, view: Any) -> _Storage:
        if 4 * num_values > size:
            raise EOFError
        stored_whole = storages.setdefault(key, _Storage(num_values))
        if view is None:
            return stored_whole
        _view_key, offset, view_size = view
        part = _Storage(view_size)
        views.append((part, key, offset))
        return part

    with path.open("rb") as file:
        if _Reader(file, path, None).load() != _STREAM_MAGIC:
            raise ValueError("no PyTorch file")
        version = _Reader(file, path, None).load()
        if version != _STREAM_VERSION:
            raise ValueError(f"PyTorch stream version {version!r}")
        if not _Reader(file, path, None).load()["little_endian"]:
            raise ValueError("big-endian numbers")
        result = _Reader(file, path, storage).load()
        for key in _Reader(file, path, None).load():
            (num_values,) = struct.unpack("<q", file.read(8))
            stored = storages[str(key)]
            if num_values != stored.num_values:
                raise ValueError(f"storage {key} has {num_values} values")
            data = file.read(4 * num_values)
            if len(data) != 4 * num_values:
                raise EOFError
            stored.data = _floats(data)
    for part, key, offset in views:
        data = storages[key].data
        if data is None or offset < 0 or offset + part.num_values > len(data):
            raise ValueError(f"a view outside of storage {key}")
        part.data = data[offset : offset + part.num_values]
    return result


def _tensors(value: Any, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
    """Names and tensors of a module's description, or of a state dict."""
    if depth > _MAX_NESTING:
        raise ValueError("modules nested too deeply")
    tensors: dict[str, Tensor] = {}
    if isinstance(value, Mapping):
        for name, tensor in value.items():
            if not isinstance(name, str) or not isinstance(tensor, _Tensor):
                raise TypeError("a mapping that is no state dict")
            tensors[prefix + name] = tensor.build(name)
        return tensors
    state = getattr(value, "__dict__", {})
    if "_modules" not in state:
        raise ValueError("neither a module nor a state dict")
    for attribute in ("_parameters", "_buffers"):
        present = {name: t for name, t in state.get(attribute, {}).items() if t is not None}
        tensors |= _tensors(present, prefix, depth + 1)
    for name, module in state["_modules"].items():
        tensors |= _tensors(module, f"{prefix}{name}.", depth + 1)
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Names -> tensors (float32, on the CPU) of a weights file of any of the three kinds.

    Raises:
        UserError: no such file, not a model, cut off, or a pickle that names anything unexpected.
    """
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if head[8:] == b"{":
            return {k: v.float() for k, v in safetensors.torch.load_file(path).items()}
        return _tensors(_read_zip(path) if head[:2] == b"PK" else _read_stream(path))
    except UserError:
        raise
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"weights file {path} cannot be read ({message}); allowed: a whole file with DALL-E's "
            "encoder as a pickled module, a pickled float32 state dict or safetensors"
        ) from None


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder with all of a file's tensors in it."""

    encoder: Encoder
    num_matched: int
    sha256: str
    """SHA-256 of the file."""


def _axis(tensors: Mapping[str, Tensor], name: str, axis: int, default: int) -> int:
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if axis < len(shape) else default


def encoder_for(tensors: Mapping[str, Tensor]) -> Encoder:
    """An encoder, on the meta device, of the size that names and shapes speak of."""
    matches = [re.match(r"blocks\.group_(\d)\.block_(\d)\.", name) for name in tensors]
    groups = [int(match[1]) for match in matches if match]
    blocks = [int(match[2]) for match in matches if match]
    with torch.device("meta"):
        return Encoder(
            width=_axis(tensors, "blocks.input.w", 0, 256),
            in_chans=_axis(tensors, "blocks.input.w", 1, 3),
            vocab_size=_axis(tensors, "blocks.output.conv.b", 0, 8192),
            blocks_per_group=max(blocks, default=2),
            num_pools=max(groups, default=4) - 1,
        )


def load_encoder(path: Path) -> LoadedEncoder:
    """The encoder of a weights file, its size inferred from the shapes.

    Raises:
        UserError: as `read_tensors`, or not every tensor has its place.
    """
    tensors = read_tensors(path)
    encoder = encoder_for(tensors)
    expected = encoder.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    common = expected.keys() & tensors.keys()
    misshapen = sorted(name for name in common if expected[name].shape != tensors[name].shape)
    num_matched = len(common) - len(misshapen)
    if missing or unexpected or misshapen:
        example = (missing + misshapen + unexpected)[0]
        raise UserError(
            f"weights file {path} is no complete DALL-E encoder: {num_matched} tensors matched, "
            f"{len(missing)} missing, {len(unexpected)} unexpected, {len(misshapen)} of another "
            f"shape (first: {example}); allowed: every tensor matched"
        )
    encoder.load_state_dict(tensors, assign=True)
    return LoadedEncoder(encoder, num_matched, file_sha256(path))
