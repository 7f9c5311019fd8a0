"""Attention maps: the shares by which the encoder's own last block mixes its values."""

import pytest
import timm
import torch
from timm.models.beit import Beit

from mim_bench.errors import UserError
from mim_bench.evaluate.attention import attention_maps, last_attention

SHAPE = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 0,
}
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vit(name="vit_tiny_patch16_224", **options):
    return timm.create_model(name, **SHAPE | options)


ENCODERS = {
    "ViT": vit,
    "registers": lambda: vit(reg_tokens=2),
    "qk_norm": lambda: vit(qk_norm=True),
    "no class token": lambda: vit(class_token=False, global_pool="avg"),
    "BEiT": lambda: Beit(**SHAPE, global_pool="", use_rel_pos_bias=True, init_values=0.1),
    "BEiT, shared": lambda: Beit(**SHAPE, global_pool="", use_shared_rel_pos_bias=True),
}


def made(name):
    torch.manual_seed(0)
    model = ENCODERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_attention__mixes_the_values_to_what_the_block_puts_out(name):
    model = made(name)
    attn, seen = model.blocks[-1].attn, []
    attn.register_forward_hook(lambda module, given, out: seen.append((given[0], out)))
    with torch.no_grad():
        got = last_attention(model, X)
        tokens, want = seen[0]
        value_bias = attn.v_bias if isinstance(model, Beit) else attn.qkv.bias[96:]
        value = torch.nn.functional.linear(tokens, attn.qkv.weight[96:], value_bias)
        value = value.unflatten(2, (3, 16)).transpose(1, 2)
        mixed = attn.proj((got @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, want, atol=1e-5, rtol=1e-5)


def test_maps__are_of_class_token_or_patch_and_leave_registers_out():
    model = made("registers")
    whole = last_attention(model, X)
    assert attention_maps(model, X).shape == (2, 3, 4, 4)
    torch.testing.assert_close(attention_maps(model, X).flatten(2), whole[:, :, 0, 3:])
    torch.testing.assert_close(attention_maps(model, X, (1, 2)).flatten(2), whole[:, :, 3 + 6, 3:])


@pytest.mark.parametrize(
    ("name", "patch", "message"),
    [
        ("ViT", (4, 0), "patch=4,0; allowed: 0,0 to 3,3"),
        ("no class token", None, "no class token; name the patch"),
        ("other", None, "attention of a Linear is not known"),
    ],
)
def test_impossible_maps__are_refused(name, patch, message):
    model = torch.nn.Linear(1, 1) if name == "other" else made(name)
    with pytest.raises(UserError, match=message):
        attention_maps(model, X, patch)
