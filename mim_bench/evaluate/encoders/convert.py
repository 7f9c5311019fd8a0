"""Conversion of a file's tensor names to timm's `VisionTransformer` or, with a relative position bias, its `Beit`.

Nothing is computed but what joins or splits tensors: the function stays the same (see `families`).

Legend: D width.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mim_bench.errors import UserError
from mim_bench.evaluate.encoders.families import (
    NOT_ENCODER,
    TO_BEIT,
    TO_HUGGING_FACE,
    TO_VIT,
    Renames,
    rename,
)
from mim_bench.evaluate.weights_file import Weights

_TABLE = "relative_position_bias_table"


def is_beit(tensors: Mapping[str, Tensor]) -> bool:
    """True if timm's `Beit` is needed: its ViT knows no relative position bias."""
    return any(name.endswith(_TABLE) for name in tensors)


def to_timm(weights: Weights) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder's tensors by timm's names, and the others of the same model."""
    renamed = _renamed(weights.tensors, weights.family.naming.renames)
    others = {name: tensor for name, tensor in renamed.items() if NOT_ENCODER.search(name)}
    encoder_tensors = {name: tensor for name, tensor in renamed.items() if name not in others}
    encoder_tensors = _joined(encoder_tensors)
    if is_beit(encoder_tensors):
        return _split_bias(_renamed(encoder_tensors, TO_BEIT)), others
    return _whole_bias(_renamed(encoder_tensors, TO_VIT)), others


def to_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain ViT's tensors by timm's names -> by those of transformers' `ViTModel`."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, is_joined, suffix = name.partition(".attn.qkv.")
        parts = zip("qkv", tensor.chunk(3), strict=True) if is_joined else ()
        split |= {f"{stem}.attn.{part}.{suffix}": own for part, own in parts} or {name: tensor}
    return _renamed(split, TO_HUGGING_FACE)


def _renamed(tensors: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    renamed = {rename(name, renames): tensor for name, tensor in tensors.items()}
    if len(renamed) != len(tensors):
        raise UserError("two of its tensors mean the same one of timm's")
    return renamed


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`attn.q`, `attn.k` and `attn.v` become `attn.qkv`; an absent key bias is zero."""
    joined = dict(tensors)
    for name in tensors:
        stem, is_query, suffix = name.partition(".attn.q.")
        if not is_query:
            continue
        parts = [joined.pop(f"{stem}.attn.{part}.{suffix}", None) for part in "qkv"]
        query = tensors[name]
        filled = [torch.zeros_like(query) if part is None else part for part in parts]
        joined[f"{stem}.attn.qkv.{suffix}"] = torch.cat(filled)
    return joined


def _whole_bias(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """BEiT's `q_bias` and `v_bias` become the ViT's `qkv.bias`."""
    complete = dict(tensors)
    for name in tensors:
        if name.endswith(".attn.q_bias"):
            stem = name.removesuffix("q_bias")
            query, value = complete.pop(name), complete.pop(f"{stem}v_bias", None)
            if value is not None:
                complete[f"{stem}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return complete


def _split_bias(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The ViT's `qkv.bias` becomes BEiT's `q_bias` and `v_bias`; the key's part has no effect."""
    split = dict(tensors)
    for name in tensors:
        if name.endswith(".attn.qkv.bias"):
            stem = re.sub(r"qkv\.bias$", "", name)
            split[f"{stem}q_bias"], _, split[f"{stem}v_bias"] = split.pop(name).chunk(3)
    return split
