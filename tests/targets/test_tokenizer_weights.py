"""Reading DALL-E encoder weights: parity with the official code's numbers, and nothing in a file runs."""

import collections
import importlib
import json
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from mim_bench.errors import UserError
from mim_bench.targets.tokenizer.encoder import Encoder, map_pixels
from mim_bench.targets.tokenizer.weights import encoder_for, load_encoder

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = GOLDEN / "dalle_weights.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
BOTH_FORMATS = pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "stream"])


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "dalle_encoder.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def _mapped(images_u8: Tensor) -> Tensor:
    return map_pixels(images_u8.movedim(-1, 1).float() / 255)


def _module_class(module: str, name: str) -> type[nn.Module]:
    return type(name, (nn.Module,), {"__module__": module, "__qualname__": name})


@contextmanager
def _fake_dall_e() -> Iterator[dict[str, type[nn.Module]]]:
    """Modules called as OpenAI's, with empty classes, for as long as it takes to pickle them."""
    modules = {
        name: types.ModuleType(name) for name in ("dall_e", "dall_e.encoder", "dall_e.utils")
    }
    places = {"Encoder": "encoder", "EncoderBlock": "encoder", "Conv2d": "utils"}
    classes = {name: _module_class(f"dall_e.{place}", name) for name, place in places.items()}
    for name, place in places.items():
        setattr(modules[f"dall_e.{place}"], name, classes[name])
    sys.modules.update(modules)
    try:
        yield classes
    finally:
        for name in modules:
            del sys.modules[name]


def _published(tensors: dict[str, Tensor], classes: dict[str, type[nn.Module]]) -> nn.Module:
    """A module tree of the published classes that holds the tensors."""

    def built(value: nn.Module, cls: type[nn.Module]) -> nn.Module:
        module = cls()
        for name, parameter in value.named_parameters(recurse=False):
            module.register_parameter(name, parameter)
        for name, child in value.named_children():
            kind = {"Block": "EncoderBlock", "Conv2d": "Conv2d"}.get(type(child).__name__)
            if kind is None and not list(child.named_children()):
                module.add_module(name, child)
            else:
                module.add_module(name, built(child, classes[kind] if kind else nn.Sequential))
        return module

    encoder = encoder_for(tensors)
    encoder.load_state_dict(tensors, assign=True)
    published = built(encoder, classes["Encoder"])
    vars(published)["device"] = torch.device("cuda:0")
    vars(published)["vocab_size"] = encoder.vocab_size
    return published


def _save(value: Any, path: Path, *, zip_format: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zip_format)
    return path


def _edit(path: Path, old: bytes, new: bytes) -> None:
    """Replaces bytes of the pickle in a file of either format."""
    content = path.read_bytes()
    if not zipfile.is_zipfile(path):
        assert old in content
        path.write_bytes(content.replace(old, new))
        return
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, record in records.items():
            is_pickle = name.endswith("/data.pkl")
            assert old in record or not is_pickle
            archive.writestr(name, record.replace(old, new) if is_pickle else record)


def _saved_module(path: Path, *, zip_format: bool) -> Path:
    tensors = safetensors.torch.load_file(WEIGHTS)
    with _fake_dall_e() as classes:
        return _save(_published(tensors, classes), path, zip_format=zip_format)


def test_encoder__logits_and_tokens_equal_the_official_ones(golden: dict[str, Tensor]) -> None:
    encoder = load_encoder(WEIGHTS).encoder
    assert encoder.factor == 8
    for name in ("a112", "b32"):
        with torch.no_grad():
            logits = encoder(_mapped(golden[f"{name}_u8"]))
        torch.testing.assert_close(logits, golden[f"{name}_logits"], atol=1e-4, rtol=0)
        assert torch.equal(logits.argmax(dim=1), golden[f"{name}_tokens"])
    assert torch.equal(_mapped(golden["b32_u8"]), golden["b32_mapped"])


def test_encoder__activations_equal_the_official_ones(golden: dict[str, Tensor]) -> None:
    encoder = load_encoder(WEIGHTS).encoder
    x = _mapped(golden["b32_u8"][:1])
    for name in ("input", "group_1", "group_2", "group_3", "group_4"):
        x = encoder.blocks.get_submodule(name)(x).detach()
        torch.testing.assert_close(x, golden[f"b32_first_after_{name}"], atol=1e-4, rtol=0)


def test_encoder__full_size_has_the_published_names_and_shapes() -> None:
    facts = json.loads((GOLDEN / "dalle_encoder.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        encoder = Encoder()
    shapes = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert shapes == facts["full_param_shapes"]
    assert sum(p.numel() for p in encoder.parameters()) == facts["full_param_count"]


@BOTH_FORMATS
def test_load_encoder__reads_a_pickled_module_without_its_classes(
    tmp_path: Path, zip_format: bool
) -> None:
    path = _saved_module(tmp_path / "encoder.pkl", zip_format=zip_format)
    assert "dall_e" not in sys.modules
    loaded = load_encoder(path)
    assert loaded.num_matched == 74
    for name, tensor in safetensors.torch.load_file(WEIGHTS).items():
        assert torch.equal(loaded.encoder.state_dict()[name], tensor)


@BOTH_FORMATS
def test_load_encoder__takes_tensors_saved_from_a_gpu(tmp_path: Path, zip_format: bool) -> None:
    path = _saved_module(tmp_path / "encoder.pkl", zip_format=zip_format)
    _edit(path, b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert load_encoder(path).num_matched == 74


@BOTH_FORMATS
def test_load_encoder__reads_a_pickled_state_dict(tmp_path: Path, zip_format: bool) -> None:
    tensors = safetensors.torch.load_file(WEIGHTS)
    state = collections.OrderedDict(sorted(tensors.items(), reverse=True))
    loaded = load_encoder(_save(state, tmp_path / "state.pt", zip_format=zip_format))
    assert all(torch.equal(loaded.encoder.state_dict()[name], tensors[name]) for name in tensors)


def test_load_encoder__reads_views_of_a_shared_storage(tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(WEIGHTS)
    name = "blocks.output.conv.w"
    shared = torch.stack([tensors[name] + 1, tensors[name]])
    loaded = load_encoder(_save(tensors | {name: shared[1]}, tmp_path / "v.pt", zip_format=True))
    assert torch.equal(loaded.encoder.state_dict()[name], tensors[name])


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def _os_system(marker: Path) -> Any:
    return _Call(os.system, f"touch {marker}")


def _nested(marker: Path) -> Any:
    return {
        "blocks.input.w": [1, ({"a": _Call(collections.OrderedDict, [("x", _os_system(marker))])},)]
    }


MALICE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "system": (_os_system, f"{os.system.__module__}.system"),
    "eval": (lambda m: _Call(eval, f"open({str(m)!r}, 'w')"), "eval"),
    "exec": (lambda m: _Call(exec, f"open({str(m)!r}, 'w')"), "exec"),
    "getattr": (lambda _: _Call(getattr, collections.OrderedDict, "__init__"), "getattr"),
    "import": (lambda _: _Call(importlib.import_module, "os"), "importlib.import_module"),
    "torch_load": (lambda m: _Call(torch.load, str(m)), "torch.serialization.load"),
    "torch_hub": (lambda m: _Call(torch.hub.load, str(m)), "torch.hub.load"),
    "nested": (_nested, f"{os.system.__module__}.system"),
}


@BOTH_FORMATS
@pytest.mark.parametrize("case", sorted(MALICE))
def test_load_encoder__refuses_other_names_and_runs_nothing(
    tmp_path: Path, case: str, zip_format: bool
) -> None:
    make, name = MALICE[case]
    marker = tmp_path / "was_here"
    path = _save(make(marker), tmp_path / "encoder.pkl", zip_format=zip_format)
    with pytest.raises(UserError, match=rf"names '[a-z_.]*{name}'"):
        load_encoder(path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_load_encoder__refuses_a_bare_pickle(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "was_here"
    path = tmp_path / "encoder.pkl"
    path.write_bytes(pickle.dumps(_os_system(marker), protocol=protocol))
    with pytest.raises(UserError, match="system"):
        load_encoder(path)
    assert not marker.exists()


@BOTH_FORMATS
def test_load_encoder__refuses_a_module_with_an_extra_class(
    tmp_path: Path, zip_format: bool
) -> None:
    path = _save(nn.Sequential(nn.Tanh()), tmp_path / "module.pt", zip_format=zip_format)
    with pytest.raises(UserError, match=r"names 'torch.nn.modules.activation.Tanh'"):
        load_encoder(path)


@pytest.mark.parametrize("kind", ["missing", "unexpected", "misshapen", "other_model"])
def test_load_encoder__counts_what_does_not_match(tmp_path: Path, kind: str) -> None:
    tensors = safetensors.torch.load_file(WEIGHTS)
    expected = {
        "missing": "73 tensors matched, 1 missing, 0 unexpected, 0 of another",
        "unexpected": "74 tensors matched, 0 missing, 1 unexpected, 0 of another",
        "misshapen": "73 tensors matched, 0 missing, 0 unexpected, 1 of another",
        "other_model": "0 tensors matched, 74 missing, 1 unexpected, 0 of another",
    }[kind]
    if kind == "missing":
        del tensors["blocks.group_2.block_1.id_path.w"]
    elif kind == "unexpected":
        tensors["head.w"] = torch.zeros(3)
    elif kind == "misshapen":
        tensors["blocks.group_1.block_1.res_path.conv_1.b"] = torch.zeros(7)
    else:
        tensors = {"head.weight": torch.zeros(3)}
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(UserError, match=expected):
        load_encoder(path)


@pytest.mark.parametrize("kind", ["zip", "stream", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.999])
def test_load_encoder__says_in_one_line_that_a_file_is_cut_off(
    tmp_path: Path, kind: str, kept: float
) -> None:
    if kind == "safetensors":
        whole = WEIGHTS
    else:
        whole = _saved_module(tmp_path / "whole.pkl", zip_format=kind == "zip")
    content = whole.read_bytes()
    path = tmp_path / "cut.pkl"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match="cannot be read") as raised:
        load_encoder(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"hello, world\n", b"\x80\x02]q\x00.", b"PK\x03\x04", b"\x00" * 64]
)
def test_load_encoder__says_in_one_line_that_a_file_is_no_model(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "encoder.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read") as raised:
        load_encoder(path)
    assert "\n" not in str(raised.value)


def test_load_encoder__names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_encoder(tmp_path / "absent.pkl")


@BOTH_FORMATS
def test_load_encoder__refuses_a_tensor_outside_of_its_storage(
    tmp_path: Path, zip_format: bool
) -> None:
    state = {"blocks.input.b": torch.zeros(5)}
    path = _save(state, tmp_path / "state.pt", zip_format=zip_format)
    _edit(path, b"K\x05\x85", b"K\x7f\x85")  # the shape's tuple
    with pytest.raises(UserError, match="outside of its storage"):
        load_encoder(path)
