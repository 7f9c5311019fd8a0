"""Attention maps of a token of the last block: the softmax over patches, head by head.

Attention is computed anew from what enters the block's attention, as timm's fused kernels hand out none. timm's ViT
and its BEiT are known, relative position biases included.

Legend: B batch, A heads, T tokens, h x w grid of patches, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mim_bench.errors import UserError
from mim_bench.evaluate.features import has_class_token


@torch.no_grad()
def attention_maps(
    encoder: nn.Module, images: Tensor, patch: tuple[int, int] | None = None
) -> Tensor:
    """Normalised images (B, C, H, W) -> (B, A, h, w), what a token looks at; its shares of all tokens sum to 1.

    Args:
        patch: row and column of the patch that looks, from 0; by default it is the class token.

    Raises:
        UserError: no class token, no such patch, or an encoder of another kind.
    """
    if not isinstance(encoder, (VisionTransformer, Beit)):
        raise UserError(
            f"attention of a {type(encoder).__name__} is not known; needed is timm's ViT or Beit"
        )
    height, width = encoder.patch_embed.grid_size
    prefix = encoder.num_prefix_tokens
    if patch is None and not has_class_token(encoder):
        raise UserError("the encoder has no class token; name the patch that looks")
    if patch is not None:
        check_patch(patch, (height, width))
    query = 0 if patch is None else prefix + patch[0] * width + patch[1]
    weights = last_attention(encoder, images)[:, :, query, prefix:]
    return weights.unflatten(2, (height, width))


def check_patch(patch: tuple[int, int], grid: tuple[int, int]) -> None:
    """Refuses a patch outside of a grid."""
    if not (0 <= patch[0] < grid[0] and 0 <= patch[1] < grid[1]):
        raise UserError(f"patch={patch[0]},{patch[1]}; allowed: 0,0 to {grid[0] - 1},{grid[1] - 1}")


def last_attention(encoder: VisionTransformer | Beit, images: Tensor) -> Tensor:
    """Normalised images (B, C, H, W) -> attention of the last block (B, A, T, T), rows sum to 1."""
    model: Any = encoder
    attn = model.blocks[-1].attn
    inputs: list[Tensor] = []
    hook = attn.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    try:
        encoder.eval().forward_features(images)
    finally:
        hook.remove()
    tokens = inputs[0]
    bias = attn.qkv.bias
    if isinstance(encoder, Beit) and attn.q_bias is not None:
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    qkv = F.linear(tokens, attn.qkv.weight, bias)
    query, key, _ = qkv.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    if isinstance(encoder, VisionTransformer):
        query, key = attn.q_norm(query), attn.k_norm(key)
    logits = query * attn.scale @ key.mT
    if isinstance(encoder, Beit):
        if attn.relative_position_bias_table is not None:
            logits = logits + attn._get_rel_pos_bias()
        if encoder.rel_pos_bias is not None:
            logits = logits + encoder.rel_pos_bias()
    return logits.softmax(-1)
