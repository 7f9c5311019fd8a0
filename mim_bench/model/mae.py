"""The masked autoencoder: timm's ViT as encoder, timm's blocks as decoder, one linear head.

MAE (He et al. 2022, arXiv 2111.06377). Encoder parameters keep timm's names, decoder parameters MAE's,
so that official checkpoints load and the encoder goes into timm without conversion. `mask_tokens`
chooses the shape: mask tokens in the decoder (MAE), in the encoder (MAE Table 1c), or in the encoder
with one linear layer as head (BEiT, SimMIM, MaskFeat).

Deliberate differences: hidden patches are dropped before they are projected, which is the same
function for less work; the projection's bias starts at zero.

Legend: B batch, C channels, H W image, L patches, V visible patches, D encoder width, E decoder width,
dim target width. Masks: True = hidden.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mim_bench import rng
from mim_bench.config.run import ModelConfig
from mim_bench.model import masking
from mim_bench.model.vit import Encoder, LayerNorm, sincos_table
from mim_bench.target import Geometry, Target, check_loss_shape


def build_encoder(
    config: ModelConfig,
    geometry: Geometry,
    *,
    seed: int,
    num_classes: int = 0,
    drop_path: float = 0.0,
) -> Encoder:
    """timm's ViT with initial weights that depend on `seed` alone.

    With `num_classes` it is a classifier on the mean of the patch tokens with a fresh norm (`fc_norm`),
    as MAE fine-tunes; without, it ends in `norm` and returns tokens.
    """
    encoder = Encoder(
        img_size=geometry.image_size,
        patch_size=config.patch_size,
        in_chans=geometry.in_chans,
        num_classes=num_classes,
        global_pool="avg" if num_classes else "",
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=drop_path,
        norm_layer=LayerNorm,
        weight_init="skip",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.integer(seed=seed, stream="init encoder"))
        encoder.blocks.apply(_init_layer)
        projection = encoder.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.view(config.embed_dim, -1))
        nn.init.zeros_(projection.bias)
        nn.init.normal_(encoder.cls_token, std=0.02)
        _init_position(encoder.pos_embed, config, geometry)
        if num_classes:
            torch.manual_seed(rng.integer(seed=seed, stream="init head"))
            nn.init.trunc_normal_(encoder.head.weight, std=2e-5)  # MAE's fine-tuning
            nn.init.zeros_(encoder.head.bias)
    return encoder


def _init_layer(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _init_position(table: nn.Parameter, config: ModelConfig, geometry: Geometry) -> None:
    if config.position == "sincos":
        table.data.copy_(sincos_table(geometry.grid, table.shape[-1])[None])
        table.requires_grad_(False)
    else:
        nn.init.trunc_normal_(table, std=0.02)


class MaskedAutoencoder(nn.Module):
    """A masked image model whose head predicts `target_dim` values for each patch."""

    def __init__(
        self,
        config: ModelConfig,
        geometry: Geometry,
        target_dim: int,
        *,
        num_visible: int | None = None,
        seed: int = 0,
    ) -> None:
        """Builds the model; its initial weights depend on `seed`, and but for the head on nothing else.

        Args:
            target_dim: width of the head, `target.dim`.
            num_visible: visible patches of an image; by default a quarter, as MAE.
        """
        super().__init__()
        self.config = config
        self.geometry = geometry
        for name, values in (("mean", geometry.mean), ("std", geometry.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.num_visible = num_visible or masking.num_visible(geometry.num_patches, 0.75)
        self.encoder = build_encoder(config, geometry, seed=seed)

        light = config.mask_tokens == "encoder_light"
        in_decoder = config.mask_tokens == "decoder"
        width = config.embed_dim if light else config.decoder_dim
        self.mask_token = nn.Parameter(
            torch.zeros(1, 1, config.decoder_dim if in_decoder else config.embed_dim)
        )
        if not light:
            self.decoder_embed = nn.Linear(config.embed_dim, width)
            self.decoder_pos_embed = nn.Parameter(torch.zeros(1, geometry.num_patches + 1, width))
            self.decoder_blocks = nn.ModuleList(
                Block(
                    width,
                    config.decoder_num_heads,
                    config.mlp_ratio,
                    qkv_bias=True,
                    norm_layer=LayerNorm,
                )
                for _ in range(config.decoder_depth)
            )
            self.decoder_norm = LayerNorm(width)
        self.decoder_pred = nn.Linear(width, target_dim)
        self._init_decoder(seed)

    def _init_decoder(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.integer(seed=seed, stream="init decoder"))
            nn.init.normal_(self.mask_token, std=0.02)
            if self.config.mask_tokens != "encoder_light":
                _init_layer(self.decoder_embed)
                self.decoder_blocks.apply(_init_layer)
                _init_position(self.decoder_pos_embed, self.config, self.geometry)
            # last and on its own stream: the only layer whose shape depends on the target
            torch.manual_seed(rng.integer(seed=seed, stream="init prediction"))
            _init_layer(self.decoder_pred)

    def forward(
        self, images: Tensor, target: Target, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss over hidden patches, prediction for all, and the mask.

        Args:
            images: (B, C, H, W) floats in [0, 1].
            target: what is predicted; it sees the same images and gets no gradient.
            noise: (B, L); the `num_visible` smallest stay visible. Unset: uniform.

        Returns:
            loss (scalar, mean over hidden patches), prediction (B, L, dim), mask (B, L) bool, True = hidden.
        """
        values = compute_values(target, images)
        if noise is None:
            noise = torch.rand(len(images), self.geometry.num_patches, device=images.device)
        visible, restore, mask, hidden = masking.split(noise, self.num_visible)
        prediction = self.predict(images, visible, restore)
        losses = target.loss(_take(prediction, hidden), _values_at(values, hidden))
        check_loss_shape(target, losses, hidden.shape)
        return losses.mean(), prediction, mask

    def predict(self, images: Tensor, visible: Tensor, restore: Tensor) -> Tensor:
        """Images (B, C, H, W), visible (B, V), restore (B, L) -> prediction (B, L, dim)."""
        if self.config.mask_tokens == "decoder":
            tokens = self.decoder_embed(self.encode(images, visible))
            hidden = self.mask_token.expand(len(tokens), restore.shape[1] - visible.shape[1], -1)
            patches = torch.cat([tokens[:, 1:], hidden.to(tokens.dtype)], dim=1)
            tokens = torch.cat([tokens[:, :1], _take(patches, restore)], dim=1)  # (B, 1 + L, E)
        else:
            tokens = self._encode_with_mask_tokens(images, restore)
        if self.config.mask_tokens == "encoder":
            tokens = self.decoder_embed(tokens)
        if self.config.mask_tokens != "encoder_light":
            tokens = tokens + self.decoder_pos_embed
            for block in self.decoder_blocks:
                tokens = block(tokens)
            tokens = self.decoder_norm(tokens)
        return self.decoder_pred(tokens[:, 1:])

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """Images (B, C, H, W) and visible patches (B, V) -> tokens (B, 1 + V, D), class token first."""
        position = self.encoder.pos_embed
        patches = self._embed(_take(self._patches(images), visible))
        patches = patches + _take(position[:, 1:].expand(len(images), -1, -1), visible)
        return self._encoder_blocks(patches)

    def _encode_with_mask_tokens(self, images: Tensor, restore: Tensor) -> Tensor:
        """Images (B, C, H, W), restore (B, L) -> tokens (B, 1 + L, D), hidden ones from mask tokens."""
        patches = self._embed(self._patches(images))
        mask = (restore >= self.num_visible)[:, :, None]
        patches = torch.where(mask, self.mask_token.to(patches.dtype), patches)
        return self._encoder_blocks(patches + self.encoder.pos_embed[:, 1:])

    def _patches(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> normalised patches (B, L, C*p*p) in the order of the projection."""
        p = self.config.patch_size
        images = (images - self.mean) / self.std
        return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)

    def _embed(self, patches: Tensor) -> Tensor:
        """The patch projection, a convolution of stride p, as the linear map that it is."""
        projection = self.encoder.patch_embed.proj
        return F.linear(patches, projection.weight.flatten(1), projection.bias)

    def _encoder_blocks(self, patches: Tensor) -> Tensor:
        encoder = self.encoder
        first = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(patches), -1, -1)
        tokens = torch.cat([first.to(patches.dtype), patches], dim=1)
        for block in encoder.blocks:
            tokens = block(tokens)
        return encoder.norm(tokens)


def compute_values(target: Target, images: Tensor) -> Tensor:
    """Values of a target, without gradient, in the precision that its class states."""
    exact = torch.autocast(images.device.type, enabled=False)  # the same on every device
    with torch.no_grad(), exact if target.precision == "float32" else nullcontext():
        return target(images)


def _values_at(values: Tensor, index: Tensor) -> Tensor:
    """Values (B, L) or (B, L, K) at patches (B, N) -> (B, N) or (B, N, K)."""
    return _take(values, index) if values.ndim == 3 else values.gather(1, index)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """(B, N, D) and (B, K) -> (B, K, D)."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[-1]))
