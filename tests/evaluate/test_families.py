"""Families of weights, made by the libraries themselves at random weights: each gives the library's own features."""

import json

import pytest
import timm
import torch
from timm.models.beit import Beit

from mim_bench.errors import UserError
from mim_bench.evaluate.encoders.describe import report
from mim_bench.evaluate.encoders.families import FAMILIES
from mim_bench.evaluate.load_encoder import load_encoder, open_encoder

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}
WIDE = SMALL | {"intermediate_size": 96}
RELATIVE = WIDE | {"use_mean_pooling": False, "use_relative_position_bias": True}
SHARED = WIDE | {"use_mean_pooling": False, "use_shared_relative_position_bias": True}
HUGGING_FACE = {
    "ViT": ("ViT", "Model", WIDE, "ViT, Hugging Face", 0.5),
    "ViT, classifier": ("ViT", "ForImageClassification", WIDE, "ViT, Hugging Face", 0.5),
    "ViT, no bias": ("ViT", "Model", WIDE | {"qkv_bias": False}, "ViT, Hugging Face", 0.5),
    "MAE": ("ViTMAE", "Model", WIDE, "MAE, Hugging Face", 0.485),
    "MAE, pre-training": ("ViTMAE", "ForPreTraining", WIDE, "MAE, Hugging Face", 0.485),
    "BEiT": ("Beit", "Model", RELATIVE, "BEiT, Hugging Face", 0.5),
    "BEiT, absolute too": (
        "Beit", "Model", RELATIVE | {"use_absolute_position_embeddings": True}, "BEiT, Hugging Face", 0.5,
    ),
    "BEiT, masked": ("Beit", "ForMaskedImageModeling", SHARED | {"use_mask_token": True}, "BEiT, Hugging Face", 0.5),
    "BEiT, fine-tuned": (
        "Beit", "ForImageClassification", RELATIVE | {"use_mean_pooling": True}, "BEiT, Hugging Face", 0.5,
    ),
    "data2vec": ("Data2VecVision", "Model", SHARED, "data2vec, Hugging Face", 0.5),
    "DINOv2": ("Dinov2", "Model", SMALL, "DINOv2, Hugging Face", 0.485),
    "DINOv2, SwiGLU": ("Dinov2", "Model", SMALL | {"use_swiglu_ffn": True}, "DINOv2, Hugging Face", 0.485),
    "DINOv2, registers": (
        "Dinov2WithRegisters", "Model", SMALL, "DINOv2 with registers, Hugging Face", 0.485,
    ),
}  # fmt: skip


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """The model with all its tensors moved: zeros and ones of an initialisation hide what is not loaded."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def hugging_face(name: str) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    kind, task, options, _, _ = HUGGING_FACE[name]
    if not hasattr(transformers, f"{kind}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    torch.manual_seed(0)
    options = options | ({"mask_ratio": 0.0} if kind == "ViTMAE" else {})
    config = getattr(transformers, f"{kind}Config")(**options)
    return shaken(getattr(transformers, f"{kind}{task}")(config))


def features_of(model: torch.nn.Module) -> torch.Tensor:
    """Tokens of the last layer, (B, T, D)."""
    model = getattr(model, getattr(model, "base_model_prefix", ""), model)
    if (
        type(model).__name__ == "ViTMAEModel"
    ):  # it shuffles patches by noise, even where it hides none
        return model(X, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    return model(X).last_hidden_state


@pytest.mark.parametrize("name", HUGGING_FACE)
@pytest.mark.parametrize("with_config", [True, False])
def test_hugging_face__gives_its_own_features(tmp_path, name, with_config):
    model = hugging_face(name)
    model.save_pretrained(tmp_path)
    if (
        not with_config
    ):  # the heads cannot be read from a ViT's tensors, and neither can the epsilon
        (tmp_path / "config.json").unlink()
    loaded = open_encoder(tmp_path, num_heads=None if with_config else 3)
    with torch.no_grad():
        got, want = loaded.encoder.eval().forward_features(X), features_of(model)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert not loaded.missing and not loaded.unexpected and loaded.num_matched
    shown = dict(report(loaded))
    assert (
        "0 missing, 0 unexpected" in shown["tensors"]
        and " 2 x 48, 3 heads, patch 8" in shown["encoder"]
    )
    *_, family, mean = HUGGING_FACE[name]
    if with_config:
        assert loaded.family == family and loaded.mean[0] == mean


def beit(**options) -> torch.nn.Module:
    fixed = {
        "img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0,
        "global_pool": "", "init_values": 0.1,
    }  # fmt: skip
    torch.manual_seed(0)
    return shaken(Beit(**fixed | options))


def small_timm(name: str, **options) -> torch.nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return shaken(timm.create_model(name, num_classes=0, **sizes | options))


TIMM = {
    "BEiT": lambda: beit(use_rel_pos_bias=True, use_abs_pos_emb=False),
    "BEiT, shared, positions": lambda: beit(use_shared_rel_pos_bias=True),
    "BEiT, no layer scale": lambda: beit(use_rel_pos_bias=True, init_values=None),
    "BEiT, no bias": lambda: beit(use_rel_pos_bias=True, qkv_bias=False),
    "BEiT without relative positions": beit,
    "BEiT, fine-tuned": lambda: beit(use_rel_pos_bias=True, global_pool="avg"),
    "beit_base_patch16_224": lambda: small_timm("beit_base_patch16_224"),
    "beitv2_base_patch16_224": lambda: small_timm("beitv2_base_patch16_224"),
    "vit_base_patch16_224": lambda: small_timm("vit_base_patch16_224"),
    "vit_base_patch16_224.mae": lambda: small_timm("vit_base_patch16_224.mae"),
    "deit_base_patch16_224": lambda: small_timm("deit_base_patch16_224"),
    "deit3_base_patch16_224": lambda: small_timm("deit3_base_patch16_224"),
    "vit_base_patch14_dinov2": lambda: small_timm("vit_base_patch14_dinov2"),
    "vit_base_patch14_reg4_dinov2": lambda: small_timm("vit_base_patch14_reg4_dinov2"),
    "vit_giant_patch14_dinov2": lambda: small_timm("vit_giant_patch14_dinov2"),
    "vit_base_patch16_clip_224": lambda: small_timm("vit_base_patch16_clip_224"),
}


@pytest.mark.parametrize("name", TIMM)
def test_file_saved_by_timm__gives_its_own_features(tmp_path, name):
    model = TIMM[name]()
    torch.save({"model": model.state_dict(), "epoch": 1}, tmp_path / "w.pth")
    loaded = open_encoder(tmp_path / "w.pth", num_heads=3)
    with torch.no_grad():
        got = loaded.encoder.eval().forward_features(X)
        torch.testing.assert_close(got, model.forward_features(X))
    assert "0 missing, 0 unexpected" in dict(report(loaded))["tensors"]


def test_key_bias_beside_relative_positions__has_no_effect(tmp_path):
    model = beit(use_rel_pos_bias=True)
    state = dict(model.state_dict())
    for place in range(2):
        stem = f"blocks.{place}.attn."
        query, value = state.pop(f"{stem}q_bias"), state.pop(f"{stem}v_bias")
        state[f"{stem}qkv.bias"] = torch.cat([query, torch.randn(48), value])
        state[f"{stem}relative_position_index"] = torch.zeros(17, 17)
    torch.save(state, tmp_path / "mae_lite.pth")
    with torch.no_grad():
        got = load_encoder(tmp_path / "mae_lite.pth").eval().forward_features(X)
        torch.testing.assert_close(got, model.forward_features(X))


OWN = {
    "SimMIM": ("SimMIM", {"encoder.": beit(use_shared_rel_pos_bias=True, use_abs_pos_emb=False)},
               ("encoder.mask_token", "decoder.0.weight")),
    "MAE": ("MAE, pre-trained", {"": small_timm("vit_base_patch16_224")}, ("decoder_pred.weight", "mask_token")),
    "DINO": ("DINO or iBOT", {"backbone.": small_timm("vit_base_patch16_224")}, ("head.last_layer.weight_v",)),
    "MoCo v3": ("ViT of timm's names", {"module.base_encoder.": small_timm("vit_base_patch16_224")}, ()),
    "DINOv2": ("DINOv2", {"": small_timm("vit_base_patch14_dinov2")}, ("mask_token",)),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_family__is_recognised_and_its_wrapper_taken_off(tmp_path, name):
    family, parts, others = OWN[name]
    ((prefix, model),) = parts.items()
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    torch.save({"model": state | {key: torch.zeros(1) for key in others}}, tmp_path / "w.pth")
    loaded = open_encoder(tmp_path / "w.pth", num_heads=3)
    assert loaded.family == family and len(loaded.left_out) == len(others)
    with torch.no_grad():
        got = loaded.encoder.eval().forward_features(X)
        torch.testing.assert_close(got, model.forward_features(X))


def test_mmpretrains_names__are_a_row_of_the_table(tmp_path):
    model = small_timm("vit_base_patch16_224")
    back = (
        ("patch_embed.proj.", "patch_embed.projection."), ("blocks.", "layers."), (".norm", ".ln"),
        (".mlp.fc1.", ".ffn.layers.0.0."), (".mlp.fc2.", ".ffn.layers.1."),
    )  # fmt: skip
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("norm.", "ln1.") if name.startswith("norm.") else name
        for ours, theirs in back:
            name = name.replace(ours, theirs)
        state[f"backbone.{name}"] = tensor
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "maskfeat.pth")
    loaded = open_encoder(tmp_path / "maskfeat.pth", num_heads=3)
    assert loaded.family == "ViT of mmpretrain's names"
    with torch.no_grad():
        got = loaded.encoder.eval().forward_features(X)
        torch.testing.assert_close(got, model.forward_features(X))


def test_official_dinov2_with_registers__has_a_position_for_the_class_token_alone(tmp_path):
    model = small_timm("vit_base_patch14_reg4_dinov2")
    state = dict(model.state_dict())
    row = torch.randn(1, 1, 48)
    state |= {
        "register_tokens": state.pop("reg_token"), "mask_token": torch.zeros(1, 48),
        "cls_token": state["cls_token"] - row, "pos_embed": torch.cat([row, state["pos_embed"]], 1),
    }  # fmt: skip
    torch.save(state, tmp_path / "w.pth")
    loaded = open_encoder(tmp_path / "w.pth", num_heads=3)
    assert loaded.family == "DINOv2"
    with torch.no_grad():
        got = loaded.encoder.eval().forward_features(X)
        torch.testing.assert_close(got, model.forward_features(X), atol=1e-5, rtol=1e-5)


def test_relative_table_of_another_grid__is_interpolated_as_timm_does_and_said(tmp_path, caplog):
    model = beit(use_rel_pos_bias=True, use_abs_pos_emb=False)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    encoder = load_encoder(tmp_path / "w.pth", image_size=64).eval()
    assert "relative position table interpolated from 4 x 4 to 8 x 8 patches" in caplog.text
    if not hasattr(model, "set_input_size"):
        pytest.skip("this timm brings no BEiT to another size")
    model.set_input_size((64, 64))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder.forward_features(x), model.forward_features(x))


def test_partial_file__is_an_error_unless_allowed_and_then_said(tmp_path, caplog):
    state = dict(small_timm("vit_base_patch16_224").state_dict())
    del state["blocks.1.attn.qkv.weight"]
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="1 missing, 1 unexpected"):
        open_encoder(tmp_path / "w.pth", num_heads=3)
    loaded = open_encoder(tmp_path / "w.pth", num_heads=3, allow_partial=True)
    assert loaded.missing == ("blocks.1.attn.qkv.weight",) and loaded.unexpected == ("extra",)
    assert "partial: blocks.1.attn.qkv.weight at initial weights; not comparable" in caplog.text
    assert "1 missing, 1 unexpected" in loaded.counts


def test_what_lies_beside__wins_over_the_family(tmp_path):
    torch.save(small_timm("vit_base_patch16_224").state_dict(), tmp_path / "pytorch_model.bin")
    path = tmp_path / "pytorch_model.bin"
    assert open_encoder(path, num_heads=3).mean[0] == 0.485
    config = {"architecture": "x", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = open_encoder(path, num_heads=3)
    assert found.mean == (0.1, 0.2, 0.3) and found.statistics_from == "config.json"
    (tmp_path / "config.json").write_text("[")  # somebody else's: as if it were not there
    assert open_encoder(path, num_heads=3).mean[0] == 0.485


def test_table_of_families__names_each_once_and_with_its_paper():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert all("arXiv" in family.paper and len(family.mean) == 3 for family in FAMILIES)
