"""Loading a pre-trained encoder into a plain timm `VisionTransformer`, never silently.

Accepts a run folder, a safetensors file, or a checkpoint of MAE's or timm's (a state dict, alone or
under `model` or `state_dict`), read without running any code from the file.
"""

import argparse
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mim_bench.errors import UserError
from mim_bench.model.vit import Encoder, LayerNorm
from mim_bench.records.run_folder import read_config
from mim_bench.train import checkpoint

_logger = logging.getLogger(__name__)
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # ViT-T, S, B, L, H
_NOT_ENCODER = ("decoder_", "mask_token", "head.", "fc_norm.")


def load_encoder(
    path_or_run: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> Encoder:
    """A timm ViT (no head, tokens out) with pre-trained weights; every encoder tensor must match.

    Args:
        path_or_run: run folder, or a file of weights.
        image_size: pixels; only needed for a file whose grid is not square.
        num_heads: only needed for a file of a width other than ViT-T, S, B, L, H.

    Raises:
        UserError: unreadable, or not all of the encoder's tensors match; counts are given.
    """
    path = Path(path_or_run)
    if path.is_dir():
        config = read_config(path)
        path = path / "encoder.safetensors"
        image_size = config.data.image_size
        num_heads = config.model.num_heads
    if not path.is_file():
        raise UserError(f"'{path}' does not exist")
    every = checkpoint.load_tensors(path)[0] if path.suffix == ".safetensors" else _unpickle(path)
    tensors = {name.removeprefix("module."): tensor for name, tensor in every.items()}
    tensors = {name: t for name, t in tensors.items() if not name.startswith(_NOT_ENCODER)}
    encoder = _skeleton(tensors, str(path), image_size, num_heads)
    checkpoint.load_exactly(encoder, tensors, str(path))
    _logger.info(
        "%s: %d tensors matched, 0 missing, 0 unexpected; %d of decoder and head left out",
        path, len(tensors), len(every) - len(tensors),
    )  # fmt: skip
    return encoder


def _unpickle(path: Path) -> dict[str, Tensor]:
    """A state dict from a `.pth` or `.bin`; torch's weights-only reader runs no code from the file."""
    try:
        # MAE's checkpoints carry their command line along
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from None
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise UserError(f"{path} holds no state dict")
    return dict(content)


def _skeleton(
    tensors: Mapping[str, Tensor],
    name: str,
    image_size: int | tuple[int, int] | None,
    num_heads: int | None,
) -> Encoder:
    """An encoder of the shapes that the tensors have."""
    try:
        embed_dim, in_chans, patch_size, _ = tensors["patch_embed.proj.weight"].shape
        num_patches = tensors["pos_embed"].shape[1] - 1
        hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise UserError(f"{name}: no ViT encoder: 0 of its tensors {error} are there") from None
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    size = image_size
    if size is None:
        side = round(num_patches**0.5)
        if side * side != num_patches:
            raise UserError(f"{name}: {num_patches} patches are no square; give image_size")
        size = side * patch_size
    num_heads = num_heads or _HEADS.get(embed_dim)
    if num_heads is None:
        raise UserError(f"{name}: give num_heads for an encoder of width {embed_dim}")
    return Encoder(
        img_size=size,
        patch_size=patch_size,
        in_chans=in_chans,
        num_classes=0,
        global_pool="",
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=hidden / embed_dim,
        norm_layer=LayerNorm,
    )
