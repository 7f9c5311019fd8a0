"""An encoder from outside in words and numbers, for people and for records.

Legend: D width.
"""

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mim_bench.evaluate.features import has_class_token
from mim_bench.evaluate.load_encoder import LoadedEncoder
from mim_bench.records.external import ExternalFacts


def shape_of(encoder: nn.Module) -> dict[str, Any]:
    """Sizes of an encoder by the names of `ModelConfig`, and the image that it is built for."""
    model: Any = encoder
    projection, first = model.patch_embed.proj.weight, model.blocks[0]
    grid, patch = model.patch_embed.grid_size, projection.shape[-1]
    return {
        "patch_size": patch,
        "embed_dim": projection.shape[0],
        "depth": len(model.blocks),
        "num_heads": first.attn.num_heads,
        "mlp_ratio": first.mlp.fc1.weight.shape[0] / projection.shape[0],
        "in_chans": projection.shape[1],
        "image_size": (grid[0] * patch, grid[1] * patch),
    }


def architecture(encoder: nn.Module) -> str:
    """Architecture of an encoder in a line."""
    model: Any = encoder
    shape, first = shape_of(encoder), model.blocks[0]
    registers = model.num_prefix_tokens - int(has_class_token(encoder))
    class_name = "ViT" if isinstance(encoder, VisionTransformer) else type(encoder).__name__
    height, width = shape["image_size"]
    parts = [
        f"{class_name} {shape['depth']} x {shape['embed_dim']}, {shape['num_heads']} heads, "
        f"patch {shape['patch_size']}, {shape['in_chans']} x {height} x {width}",
        "class token" if has_class_token(encoder) else "no class token",
    ]
    has_scale = getattr(first, "gamma_1", None) is not None or (
        hasattr(first, "ls1") and hasattr(first.ls1, "gamma")
    )
    is_relative = getattr(first.attn, "relative_position_bias_table", None) is not None
    is_shared = getattr(model, "rel_pos_bias", None) is not None
    parts += [f"{registers} registers"] * bool(registers)
    parts += ["absolute positions"] * (getattr(model, "pos_embed", None) is not None)
    parts += ["relative position bias"] * is_relative + [
        "shared relative position bias"
    ] * is_shared
    parts += ["layer scale"] * has_scale
    parts += ["no final norm"] * isinstance(model.norm, nn.Identity)
    return ", ".join(parts)


def facts_of(loaded: LoadedEncoder, readouts: tuple[str, ...]) -> ExternalFacts:
    """Facts of an encoder that a record keeps."""
    return ExternalFacts(
        source=loaded.source,
        sha256=loaded.sha256,
        md5=loaded.md5,
        family=loaded.family,
        paper=loaded.paper,
        architecture=architecture(loaded.encoder),
        conversion=loaded.counts,
        notes=loaded.notes,
        mean=loaded.mean,
        std=loaded.std,
        statistics_from=loaded.statistics_from,
        readouts=readouts,
    )


def report(loaded: LoadedEncoder) -> list[tuple[str, str]]:
    """Rows that `inspect` prints: field and value."""
    parameters = sum(parameter.numel() for parameter in loaded.encoder.parameters())
    left_out = ", ".join(loaded.left_out[:4]) + ", ..." * (len(loaded.left_out) > 4)
    rows = [
        ("file", loaded.source),
        ("sha256", loaded.sha256),
        ("family", loaded.family),
        ("paper", loaded.paper),
        ("encoder", architecture(loaded.encoder)),
        ("parameters", f"{parameters:,}"),
        ("tensors", loaded.counts),
        ("missing", ", ".join(loaded.missing[:4])),
        ("unexpected", ", ".join(loaded.unexpected[:4])),
        ("left out", left_out),
        ("mean", ", ".join(f"{value:g}" for value in loaded.mean)),
        ("std", ", ".join(f"{value:g}" for value in loaded.std)),
        ("statistics", loaded.statistics_from),
        *(("note", note) for note in loaded.notes),
    ]
    return [row for row in rows if row[1]]
