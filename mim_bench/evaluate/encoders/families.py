"""Whose weights a file holds: one table, a row a family, and nothing about a family anywhere else.

A family is recognised by the name of its patch projection (`mark`), by its `model_type` where a `config.json` lies
next to the file, else by further names (`signs`). `renames` turn its names into timm's; what follows from the tensors
themselves (class token, registers, positions, layer scale, a relative position bias) is not repeated here.
Input statistics are those that the family's own code evaluates with; a file next to the weights that states them wins.

Separate `q`, `k`, `v` become timm's `qkv`; a missing key bias is zero, which is the same function: it shifts all
of a query's logits alike, and the softmax takes that away.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mim_bench.config.source import IMAGENET_MEAN, IMAGENET_STD

_HALF = (0.5, 0.5, 0.5)
Renames = tuple[tuple[str, str], ...]
"""Regular expressions and what they become, applied in order."""

_TIMM: Renames = (
    (r"^dist_token$", "reg_token"),
    (r"^register_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_HUGGING_FACE: Renames = (
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.relative_position_bias\.", "rel_pos_bias."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.query\.", ".attn.q."),
    (r"\.attention\.attention\.key\.", ".attn.k."),
    (r"\.attention\.attention\.value\.", ".attn.v."),
    (r"\.attention\.attention\.relative_position_bias\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.lambda_([12])$", r".gamma_\1"),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
)  # fmt: skip
_MMPRETRAIN: Renames = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.", "blocks."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^(ln1|norm1)\.", "norm."),
)
TO_VIT: Renames = ((r"\.gamma_([12])$", r".ls\1.gamma"),)
"""Renames of timm's BEiT names to its ViT's."""
TO_BEIT: Renames = ((r"\.ls([12])\.gamma$", r".gamma_\1"),)
"""Renames of timm's ViT names to its BEiT's."""
TO_HUGGING_FACE: Renames = (
    (r"^(cls_token)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.q\.", ".attention.attention.query."),
    (r"\.attn\.k\.", ".attention.attention.key."),
    (r"\.attn\.v\.", ".attention.attention.value."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
)
"""Renames of timm's ViT names, `attn.qkv` split into `q`, `k` and `v`, to those of transformers' `ViTModel`."""
NOT_ENCODER = re.compile(
    r"^(decoder[._]|mask_token$|masked_embed$|cls_pt_layers\.|head\.|head_dist\.|fc_norm\.|lm_head\.|pooler\.|classifier\.)"
    r"|relative_position_index$|\.k_bias$"
)
"""Names, once renamed, of what is of the same model but no part of its encoder, or follows from its shape."""


@dataclass(frozen=True)
class Naming:
    """Names of a ViT's tensors in one library."""

    mark: str
    """End of the name of the patch projection; what stands before it is a wrapper's prefix."""
    renames: Renames
    """Renames of the library's names, their prefix taken off, to timm's."""


TIMM = Naming("patch_embed.proj.weight", _TIMM)
HUGGING_FACE = Naming("embeddings.patch_embeddings.projection.weight", _HUGGING_FACE)
MMPRETRAIN = Naming("patch_embed.projection.weight", _MMPRETRAIN)


@dataclass(frozen=True)
class Family:
    """A kind of weights."""

    name: str
    naming: Naming
    paper: str
    model_type: str | None = None
    """Field `model_type` in a `config.json` of Hugging Face's."""
    signs: tuple[str, ...] = ()
    """Regular expressions, each of which some full name must match where there is no `model_type`."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Per channel, of images in [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Per channel, of images in [0, 1]."""
    epsilon: float = 1e-6
    """Epsilon of the LayerNorms."""
    remark: str = ""
    """Remark on what the names cannot tell."""


FAMILIES = (
    Family(
        "MAE, pre-trained", TIMM, "He et al. 2022, arXiv 2111.06377",
        signs=(r"decoder_(pred|blocks)",),
    ),
    Family(
        "SimMIM", TIMM, "Xie et al. 2022, arXiv 2111.09886",
        signs=(r"encoder\.mask_token$", r"(^|\.)decoder\.0\."),
    ),
    Family(
        "DINOv2", TIMM, "Oquab et al. 2023, arXiv 2304.07193",
        signs=(r"\.ls1\.gamma$", r"mask_token$"),
    ),
    Family(
        "DINO or iBOT", TIMM, "Caron et al. 2021, arXiv 2104.14294; Zhou et al. 2022, arXiv 2111.07832",
        signs=(r"head\.last_layer\.",),
    ),
    Family(
        "CLIP", TIMM, "Radford et al. 2021, arXiv 2103.00020",
        signs=(r"norm_pre\.weight$",), mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD,
        epsilon=1e-5, remark="names do not show whether its activation is GELU, as assumed, or its sigmoid form",
    ),
    Family(
        "BEiT", TIMM, "Bao et al. 2022, arXiv 2106.08254",
        signs=(r"q_bias$|relative_position_bias_table$",), mean=_HALF, std=_HALF,
        remark="BEiT v2, MAE-Lite and fine-tuned SimMIM share its names, but have ImageNet's statistics",
    ),
    Family(
        "ViT of timm's names", TIMM, "Dosovitskiy et al. 2021, arXiv 2010.11929",
        remark="timm's `augreg` models share its names, but have mean and std 0.5",
    ),
    Family(
        "ViT of mmpretrain's names", MMPRETRAIN, "Wei et al. 2022, arXiv 2112.09133",
        signs=(r"\.ffn\.layers\.",),
    ),
    Family(
        "data2vec, Hugging Face", HUGGING_FACE, "Baevski et al. 2022, arXiv 2202.03555",
        "data2vec-vision", (r"^data2vec_vision\.",), mean=_HALF, std=_HALF, epsilon=1e-12,
    ),
    Family(
        "BEiT, Hugging Face", HUGGING_FACE, "Bao et al. 2022, arXiv 2106.08254",
        "beit", (r"\.lambda_1$",), mean=_HALF, std=_HALF, epsilon=1e-12,
        remark="data2vec shares its names and statistics; BEiT v2 its names, but not its statistics",
    ),
    Family(
        "DINOv2 with registers, Hugging Face", HUGGING_FACE, "Darcet et al. 2024, arXiv 2309.16588",
        "dinov2_with_registers", (r"register_tokens$",),
    ),
    Family(
        "DINOv2, Hugging Face", HUGGING_FACE, "Oquab et al. 2023, arXiv 2304.07193",
        "dinov2", (r"layer_scale1\.lambda1$",),
    ),
    Family(
        "MAE, Hugging Face", HUGGING_FACE, "He et al. 2022, arXiv 2111.06377",
        "vit_mae", (r"decoder\.decoder_",), epsilon=1e-12,
    ),
    Family(
        "ViT, Hugging Face", HUGGING_FACE, "Dosovitskiy et al. 2021, arXiv 2010.11929",
        "vit", mean=_HALF, std=_HALF, epsilon=1e-12,
        remark="files of MAE's and DINO's encoders share its names, but have ImageNet's statistics",
    ),
)  # fmt: skip
"""Most telling first."""


def recognise(names: Collection[str], model_type: str | None = None) -> Family | None:
    """The family of full names of tensors; unset where no patch projection is among them."""
    marked = [family for family in FAMILIES if marks(names, family.naming)]
    typed = [family for family in marked if model_type and family.model_type == model_type]
    signed = [
        family
        for family in marked
        if all(any(re.search(pattern, name) for name in names) for pattern in family.signs)
    ]
    return next(iter(typed or signed), None)


def marks(names: Collection[str], naming: Naming) -> list[str]:
    """Names of patch projections, the one with the shortest prefix first."""
    marked = [name for name in names if f".{name}".endswith(f".{naming.mark}")]
    return sorted(marked, key=len)


def rename(name: str, renames: Renames) -> str:
    """A name after every rename in order."""
    for pattern, becomes in renames:
        name = re.sub(pattern, becomes, name)
    return name
