"""Weight files as people have them: each loads with the model's own features, or is refused in one line."""

import argparse
import collections
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from mim_bench.errors import UserError
from mim_bench.evaluate.load_encoder import load_encoder

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vit(**options) -> VisionTransformer:
    torch.manual_seed(0)
    fixed = {
        "img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3, "num_classes": 0,
        "global_pool": "",
    }  # fmt: skip
    return VisionTransformer(**fixed | options).eval()


STATE = vit().state_dict()


def renamed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


def other() -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in STATE.items()}


WRAPPED = {
    "module.": renamed("module."),
    "_orig_mod.": renamed("_orig_mod."),
    "both": renamed("module._orig_mod."),
    "both, other way": {"model": renamed("_orig_mod.module.")},
    "backbone.": {"state_dict": renamed("backbone.")},
    "encoder.": {"model": renamed("encoder.")},
    "model.": {"state_dict": renamed("model.")},
    "module key": {"module": STATE},
    "teacher": {"student": other(), "teacher": renamed("backbone.")},
    "ema beside": {"state_dict": STATE, "state_dict_ema": other()},
    "ema alone": {"model_ema": STATE},
    "nested": {"ema": {"module": STATE}},
    "namespace": {
        "model": STATE,
        "args": argparse.Namespace(out=pathlib.PosixPath("/x")),
        "epoch": 3,
    },
    "numpy": {
        "model": STATE,
        "best": np.float64(81.2),
        "seed": np.int64(3),
    },
    "no tensors too": {**STATE, "epoch": 3, "x": None},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_weights__load_with_their_own_features(tmp_path, name, caplog):
    torch.save(WRAPPED[name], tmp_path / "w.pth")
    with torch.no_grad():
        torch.testing.assert_close(
            load_encoder(tmp_path / "w.pth").eval()(X), vit()(X), rtol=0, atol=0
        )
    if name in ("teacher", "ema beside"):
        assert "are taken; there are also" in caplog.text


MODELS = {
    "registers": vit(reg_tokens=4),
    "no class token": vit(class_token=False),
    "no_embed_class": vit(no_embed_class=True),
    "registers, no_embed_class": vit(reg_tokens=4, no_embed_class=True),
    "layer scale": vit(init_values=1e-5),
    "qk_norm": vit(qk_norm=True),
    "no qkv bias": vit(qkv_bias=False),
    "fine-tuned, norm after pooling": vit(num_classes=10, global_pool="avg"),
    "fine-tuned, class token": vit(num_classes=10, global_pool="token"),
}


@pytest.mark.parametrize("name", MODELS)
def test_architecture__is_read_from_the_tensors(tmp_path, name, caplog):
    torch.save({"model": MODELS[name].state_dict()}, tmp_path / "w.pth")
    with torch.no_grad():
        got = load_encoder(tmp_path / "w.pth").eval()(X)
        torch.testing.assert_close(got, MODELS[name].forward_features(X))
    assert ("tokens are not normalised" in caplog.text) == ("after pooling" in name)


def test_distillation_token__is_a_register(tmp_path):
    like = vit(reg_tokens=1)
    state = dict(like.state_dict())
    state["dist_token"] = state.pop("reg_token")
    save_file(state, tmp_path / "deit.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(load_encoder(tmp_path / "deit.safetensors").eval()(X), like(X))


def test_other_image_size__is_interpolated_on_request_and_said(tmp_path, caplog):
    torch.save(STATE, tmp_path / "w.pth")
    encoder = load_encoder(tmp_path / "w.pth", image_size=64)
    assert (
        encoder.pos_embed.shape == (1, 65, 192)
        and "interpolated from 4 x 4 to 8 x 8" in caplog.text
    )
    assert torch.equal(encoder.pos_embed[:, 0], STATE["pos_embed"][:, 0])


class Own:
    """A class of somebody's, which reading would have to run."""


REFUSED = {
    "video": ({**STATE, "patch_embed.proj.weight": torch.zeros(192, 3, 2, 8, 8)}, r"shape \(192, 3, 2, 8, 8\)"),
    "linear": ({**STATE, "patch_embed.proj.weight": torch.zeros(192, 192)}, "as of still images"),
    "4-D positions": ({**STATE, "pos_embed": torch.zeros(1, 4, 4, 192)}, r"pos_embed is of shape"),
    "no positions": ({k: v for k, v in STATE.items() if k != "pos_embed"}, "pos_embed is absent"),
    "other names": ({"vit.embeddings.x": torch.zeros(1)}, "it holds vit.embeddings.x"),
    "numbers": ({1: torch.zeros(1), 2: torch.zeros(1)}, "it holds 1, 2"),
    "list": ([1, 2], "holds a list, no state dict"),
    "nothing": ({}, "it holds nothing"),
    "own class": ({"model": STATE, "x": Own()}, "would run code; where you trust the file"),
    "defaultdict": ({"model": STATE, "meta": collections.defaultdict(list, a=[1])}, "holds (collections.|list)"),
    "a block missing": (
        {k: v for k, v in STATE.items() if not k.startswith("blocks.1.norm")}, "2|missing.*first names: cls_token",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_weights__are_refused_with_what_there_is(tmp_path, name):
    content, message = REFUSED[name]
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message) as error:
        load_encoder(tmp_path / "w.pth")
    assert "\n" not in str(error.value) and "w.pth" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html></html>", "it is a web page"),
        (b"\x89HDF\r\n", "Keras or HDF5"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_downloads_leave_behind__is_named(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_encoder(tmp_path / name)


def test_empty_file_wrong_heads_and_address__are_one_line_each(tmp_path):
    (tmp_path / "e.pth").touch()
    torch.save(STATE, tmp_path / "w.pth")
    for path, options, message in (
        (tmp_path / "e.pth", {}, "no file, or an empty one"),
        (tmp_path / "w.pth", {"num_heads": 5}, "num_heads=5: give one that divides the width 192"),
        (tmp_path / "w.pth", {"image_size": 33}, "no multiple of the patch size 8"),
        ("https://host/w.pth", {}, "download it first"),
    ):
        with pytest.raises(UserError, match=message):
            load_encoder(path, **options)


def test_features_that_are_not_finite__are_no_record(small, tmp_path, monkeypatch):
    from mim_bench.evaluate.context import Features
    from mim_bench.experiment.run import execute

    encode = Features.encode
    monkeypatch.setattr(Features, "encode", lambda self, images: encode(self, images) / 0 * 0)
    with pytest.raises(UserError, match="features of 120 of 120 train images are not finite"):
        execute(small("pixel"), out=tmp_path)
    assert not list(tmp_path.rglob("records/*"))
