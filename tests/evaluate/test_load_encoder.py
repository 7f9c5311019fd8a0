"""Loading an encoder: exchange with timm, official files, and nothing loaded in silence."""

import argparse
import pickle

import pytest
import torch
from conftest import GOLDEN
from official import GEOMETRY, official_model
from safetensors.torch import load_file, save_file

from mim_bench.errors import UserError
from mim_bench.evaluate.load_encoder import load_encoder
from mim_bench.experiment.run import execute
from mim_bench.model.vit import LayerNorm


@pytest.fixture
def official(tmp_path):
    """The tiny official MAE as its training script writes it: weights, optimiser, command line."""
    path = tmp_path / "checkpoint-799.pth"
    weights = load_file(GOLDEN / "mae_weights.safetensors")
    torch.save({"model": weights, "epoch": 799, "args": argparse.Namespace(lr=1e-3)}, path)
    return path


def test_official_checkpoint__gives_the_official_features(official, golden):
    encoder = load_encoder(official, num_heads=3)
    images = torch.from_numpy(golden("mae")["images_u8"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        tokens = encoder.forward_features(GEOMETRY.normalize(images))
    want = torch.from_numpy(golden("probe")["cls_features"])
    torch.testing.assert_close(tokens[:, 0], want, atol=1e-5, rtol=0)


def test_run_folder__gives_the_runs_encoder(small, tmp_path):
    result = execute(small("hog", "evaluate.protocols=[]"), out=tmp_path)
    encoder = load_encoder(result.folder)
    saved = load_file(result.folder / "encoder.safetensors")
    assert encoder.state_dict().keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in encoder.state_dict().items())


def test_encoder__goes_into_timm_without_conversion(small, tmp_path):
    import timm

    result = execute(small("pixel", "evaluate.protocols=[]"), out=tmp_path)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, in_chans=1, embed_dim=24, depth=2,
        num_heads=3, num_classes=0, norm_layer=LayerNorm,
    )  # fmt: skip
    theirs.load_state_dict(load_file(result.folder / "encoder.safetensors"))
    images = torch.rand(2, 1, 32, 32)
    ours = load_encoder(result.folder)
    with torch.no_grad():
        got = ours.eval().forward_features(images)
        torch.testing.assert_close(theirs.eval().forward_features(images), got)


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (
            lambda w: w.pop("blocks.1.attn.qkv.weight"),
            "41 tensors matched, 1 missing, 0 unexpected",
        ),
        (lambda w: w.update(extra=torch.zeros(1)), "42 tensors matched, 0 missing, 1 unexpected"),
        (
            lambda w: w.update({"norm.weight": torch.zeros(7)}),
            "41 tensors matched, 1 missing, 1 unexpected",
        ),
    ],
)
def test_encoder_that_does_not_match__is_refused_with_counts(tmp_path, change, counts):
    weights = dict(official_model().encoder.state_dict())
    change(weights)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=counts):
        load_encoder(tmp_path / "w.safetensors", num_heads=3)


def test_file_that_runs_code__is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "hacked"), "w"))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Evil()}))
    torch.save({"model": Evil()}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(UserError, match="cannot be read as weights"):
            load_encoder(tmp_path / name)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "name", ["missing.pth", "cut.safetensors", "cut.pth", "list.pth", "other.pth"]
)
def test_unusable_file__is_one_line(tmp_path, official, name):
    path = tmp_path / name
    if name.startswith("cut"):
        save_file({"a": torch.zeros(100)}, tmp_path / "whole.safetensors")
        whole = tmp_path / "whole.safetensors" if name.endswith("safetensors") else official
        path.write_bytes(whole.read_bytes()[:150])
    elif name == "list.pth":
        torch.save([1, 2], path)
    elif name == "other.pth":
        torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError) as error:
        load_encoder(path)
    assert name in str(error.value) and "\n" not in str(error.value)
