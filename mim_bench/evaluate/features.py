"""Frozen features: the readouts of an encoder on clean, unmasked images.

A readout is LAYER/POOLING. Four are taken by default, {last, middle} x {cls, patch_mean}, by the same function for
training and test images: one choice alone can reorder targets (microsoft/SimMIM#14).

- `last` is after the final norm; `middle` is the output of block depth // 2 and `block7` that of the 7th of them, not
  normalised; `block7+norm` is what the final norm makes of it (SimMIM probes a middle layer, BEiT the best one).
- `cls` is the class token, `patch_mean` the mean over patches, `cls+patch_mean` one next to the other (DINOv2),
  `patches` all patches one after the other, which keeps where they are: (N, L D), for small grids. `attentive` is
  what the attentive probe alone reads, and it trains one probe a layer.

Registers are left out. An encoder without class token has the readouts of its patches only.

Legend: N images, R readouts, L patches, D encoder width.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mim_bench.errors import UserError
from mim_bench.train import distributed

READOUTS = ("last/cls", "last/patch_mean", "middle/cls", "middle/patch_mean")
POOLINGS = ("cls", "patch_mean", "cls+patch_mean")
PATCHES, ATTENTIVE = "patches", "attentive"
"""Poolings that are taken where they are named, never by `all`."""
_BLOCK = re.compile(r"block([1-9]\d*)(\+norm)?")


def readouts(encoder: nn.Module, images: Tensor, names: Sequence[str] = READOUTS) -> Tensor:
    """Normalised images (B, C, H, W) -> (B, R, D) float32, in the order of `names`, none of them joined."""
    layer_names = list(dict.fromkeys(name.partition("/")[0] for name in names))
    tokens = dict(zip(layer_names, layers(encoder, images, layer_names), strict=True))
    pooled = []
    for name in names:
        layer, slash, pooling = name.partition("/")
        if not slash:
            raise UserError(f"readout '{name}': allowed: LAYER/POOLING, such as last/patch_mean")
        first = int(has_class_token(encoder))
        pooled.append(tokens[layer][:, 0] if pooling == "cls" else tokens[layer][:, first:].mean(1))
    return torch.stack(pooled, dim=1).float()


def layers(encoder: nn.Module, images: Tensor, names: Sequence[str]) -> list[Tensor]:
    """Normalised images (B, C, H, W) -> tokens of each layer, (B, 1 + L, D), class token first if there is one."""
    model: Any = encoder
    depth = len(model.blocks)
    parsed = [parse_layer(name, depth) for name in names]
    blocks = sorted({block for block, _ in parsed})
    outputs = model.forward_intermediates(
        images, indices=[block - 1 for block in blocks], return_prefix_tokens=True,
        output_fmt="NLC", intermediates_only=True,
    )  # fmt: skip
    if has_class_token(encoder):
        outputs = [torch.cat([prefix[:, :1], patches], dim=1) for patches, prefix in outputs]
    elif model.num_prefix_tokens:
        outputs = [patches for patches, _ in outputs]
    of_block = dict(zip(blocks, outputs, strict=True))
    return [model.norm(of_block[b]) if is_normed else of_block[b] for b, is_normed in parsed]


def has_class_token(encoder: nn.Module) -> bool:
    """True if the encoder has a class token."""
    return getattr(encoder, "cls_token", None) is not None


def parse_layer(layer: str, depth: int) -> tuple[int, bool]:
    """Block of a layer, from 1, and whether the final norm follows; UserError for what is no layer."""
    if layer in ("last", "middle"):
        return (depth, True) if layer == "last" else (max(1, depth // 2), False)
    match = _BLOCK.fullmatch(layer)
    if not match or int(match[1]) > depth:
        raise UserError(
            f"readout layer '{layer}'; allowed: last, middle, block1 to block{depth}, each block with +norm too"
        )
    return int(match[1]), match[2] is not None


def pooled_by(pooling: str, names: Sequence[str]) -> list[str]:
    """Layers of the readouts of one pooling, the last one first where it is not named."""
    layer_names = [name.partition("/")[0] for name in names if name.endswith(f"/{pooling}")]
    return list(dict.fromkeys(["last", *layer_names]))


def default_readouts(encoder: nn.Module) -> tuple[str, ...]:
    """Readouts of `READOUTS` that an encoder has."""
    return tuple(n for n in READOUTS if has_class_token(encoder) or not n.endswith("/cls"))


def chosen_readouts(text: str, encoder: nn.Module) -> tuple[str, ...]:
    """The default readouts and those that `text` adds: comma-separated names, `all`, or nothing."""
    depth = len(encoder.blocks)  # pyright: ignore[reportArgumentType]
    has_class = has_class_token(encoder)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if text == "all":
        candidates = [f"block{b}{norm}" for b in range(1, depth + 1) for norm in ("", "+norm")]
        names = [
            f"{layer}/{pooling}" for layer in ("last", *candidates[:-1]) for pooling in POOLINGS
        ]
        names = [name for name in names if has_class or name.endswith("/patch_mean")]
    for name in names:
        layer, _, pooling = name.partition("/")
        allowed = (*(POOLINGS if has_class else ("patch_mean",)), PATCHES, ATTENTIVE)
        if pooling not in allowed:
            raise UserError(f"readout '{name}': pooling '{pooling}'; allowed: {', '.join(allowed)}")
        parse_layer(layer, depth)
    return tuple(dict.fromkeys((*default_readouts(encoder), *names)))


def extract(
    encode: Callable[[Tensor], Tensor],
    batches: Iterator[tuple[Tensor, Tensor]],
    num_images: int,
    num_counted: int,
) -> Tensor:
    """Runs `encode` (8-bit images -> (B, R, D)) over batches with their indices -> (N, R, D).

    The ranks' batches together hold every image once; of this rank's only the first `num_counted` count.
    """
    features: Tensor | None = None
    with torch.inference_mode():
        for number, (images, index) in enumerate(batches):
            values = encode(images)
            if features is None:
                features = values.new_zeros(num_images, *values.shape[1:])
            if number < num_counted:
                features[index.to(values.device)] = values
        if features is None:
            raise ValueError("no images to take features of")
        distributed.all_reduce_sum(features)
    return features.clone()  # a normal tensor: one made in inference mode cannot be trained on
