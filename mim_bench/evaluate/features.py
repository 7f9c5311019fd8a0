"""Frozen features: the readouts of an encoder on clean, unmasked images.

Four readouts are taken at once, {last, middle} x {cls, patch_mean}, by the same function for training
and test images. `last` is after the final norm, `middle` is the output of block depth // 2, not
normalised. One choice alone can reorder targets (microsoft/SimMIM#14), so all four are reported.

Legend: N images, R readouts, L patches, D encoder width.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mim_bench.model.vit import Encoder
from mim_bench.train import distributed

READOUTS = ("last/cls", "last/patch_mean", "middle/cls", "middle/patch_mean")


def readouts(encoder: Encoder, images: Tensor) -> Tensor:
    """Normalised images (B, C, H, W) -> (B, R, D) float32, in the order of `READOUTS`."""
    pooled = []
    for layer in layers(encoder, images):
        pooled += [layer[:, 0], layer[:, 1:].mean(1)]
    return torch.stack(pooled, dim=1).float()


def layers(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised images (B, C, H, W) -> tokens of `last` and `middle`, (B, 1 + L, D) each, class token first."""
    tokens = encoder.patch_embed(images)
    first = encoder.cls_token.expand(len(tokens), -1, -1)
    tokens = torch.cat([first, tokens], dim=1) + encoder.pos_embed
    middle = tokens
    for place, block in enumerate(encoder.blocks, start=1):
        tokens = block(tokens)
        if place == max(1, len(encoder.blocks) // 2):
            middle = tokens
    return encoder.norm(tokens), middle


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
