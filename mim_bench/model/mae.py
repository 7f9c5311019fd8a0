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

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import permutations

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
        self,
        images: Tensor,
        target: Target,
        noise: Tensor | None = None,
        *,
        hidden_only: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss over hidden patches, prediction for all, and the mask.

        Args:
            images: (B, C, H, W) floats in [0, 1].
            target: what is predicted; it sees the same images and gets no gradient.
            noise: (B, L); the `num_visible` smallest stay visible. Unset: uniform.
            hidden_only: predict hidden patches only, (B, N, dim) in the order of their noise; all that
                training needs.

        Returns:
            loss (scalar, mean over hidden patches), prediction (B, L, dim), mask (B, L) bool, True = hidden.
        """
        values = compute_values(target, images)
        if noise is None:
            noise = torch.rand(len(images), self.geometry.num_patches, device=images.device)
        shuffle, mask = masking.split(noise, self.num_visible)
        hidden = shuffle[:, self.num_visible :]
        has_class = target.has_image_loss
        prediction = self.predict(images, shuffle, hidden_only=hidden_only, class_token=has_class)
        first, prediction = prediction.tensor_split([int(has_class)], dim=1)
        at_hidden = prediction if hidden_only else take(prediction, hidden)
        losses = target.loss(at_hidden, values_at(values, hidden))
        check_loss_shape(target, losses, hidden.shape)
        loss = losses.mean()
        if has_class:
            target_values = compute_values(target, images, target.image_values)
            loss = loss + target.image_loss(first[:, 0], target_values).mean()
        return loss, prediction, mask

    def compare(self, views: Sequence[Tensor], target: Target) -> Tensor:
        """Views of the same images (B, C, H, W), nothing hidden -> the target's image loss (scalar).

        The mean over images and over pairs of a view that is predicted from and another that has the values.
        """
        order = torch.arange(self.geometry.num_patches, device=views[0].device)
        order = order.expand(len(views[0]), -1)
        predictions = [
            self.predict(view, order, hidden_only=True, class_token=True)[:, 0] for view in views
        ]
        values = [compute_values(target, view, target.image_values) for view in views]
        pairs = permutations(range(len(views)), 2)
        return torch.stack(
            [target.image_loss(predictions[i], values[j]).mean() for i, j in pairs]
        ).mean()

    def predict(
        self,
        images: Tensor,
        shuffle: Tensor,
        *,
        hidden_only: bool = False,
        class_token: bool = False,
    ) -> Tensor:
        """Images (B, C, H, W), patches with the visible ones first (B, L) -> prediction (B, L, dim).

        Mask tokens follow the visible patches until the end, so that hidden patches are a slice: blocks
        do not mind the order of their tokens. `hidden_only`: (B, N, dim) in the order of `shuffle`.
        `class_token`: (B, 1 + ., dim), the class token's first.
        """
        visible = shuffle[:, : self.num_visible]
        if self.config.mask_tokens == "decoder":
            tokens = self.encode(images, visible)
        else:
            patches = self._embed(take(self._patches(images), visible))
            tokens = self._encoder_blocks(self._with_mask_tokens(patches), shuffle)
        if self.config.mask_tokens != "encoder_light":
            tokens = self.decoder_embed(tokens)
            if self.config.mask_tokens == "decoder":
                tokens = self._with_mask_tokens(tokens)
            tokens = tokens + _position(self.decoder_pos_embed, shuffle)
            for block in self.decoder_blocks:
                tokens = block(tokens)
            tokens = self.decoder_norm(tokens)
        kept_tokens = tokens[:, 1 + self.num_visible :] if hidden_only else tokens[:, 1:]
        if class_token:
            kept_tokens = torch.cat([tokens[:, :1], kept_tokens], dim=1)
        prediction = self.decoder_pred(kept_tokens)
        if hidden_only:
            return prediction
        first, patches = prediction.tensor_split([int(class_token)], dim=1)
        patches = take(patches, torch.argsort(shuffle, dim=1))
        return torch.cat([first, patches], dim=1) if class_token else patches

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """Images (B, C, H, W) and visible patches (B, V) -> tokens (B, 1 + V, D), class token first."""
        return self._encoder_blocks(self._embed(take(self._patches(images), visible)), visible)

    def _with_mask_tokens(self, tokens: Tensor) -> Tensor:
        """(B, V, ·) or (B, 1 + V, ·) -> the same with L - V mask tokens behind."""
        num_hidden = self.geometry.num_patches - self.num_visible
        hidden = self.mask_token.to(tokens.dtype).expand(len(tokens), num_hidden, -1)
        return torch.cat([tokens, hidden], dim=1)

    def _patches(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> normalised patches (B, L, C*p*p) in the order of the projection."""
        p = self.config.patch_size
        images = (images - self.mean) / self.std
        return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)

    def _embed(self, patches: Tensor) -> Tensor:
        """The patch projection, a convolution of stride p, as the linear map that it is."""
        projection = self.encoder.patch_embed.proj
        return F.linear(patches, projection.weight.flatten(1), projection.bias)

    def _encoder_blocks(self, patches: Tensor, index: Tensor) -> Tensor:
        """Embedded patches (B, N, D) and which they are (B, N) -> tokens (B, 1 + N, D)."""
        encoder = self.encoder
        first = encoder.cls_token.to(patches.dtype).expand(len(patches), -1, -1)
        tokens = torch.cat([first, patches], dim=1) + _position(encoder.pos_embed, index)
        for block in encoder.blocks:
            tokens = block(tokens)
        return encoder.norm(tokens)


def compute_values(
    target: Target, images: Tensor, function: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Values of a target, or of one of its functions, without gradient, in the precision that its class states."""
    exact = torch.autocast(images.device.type, enabled=False)  # the same on every device
    with torch.no_grad(), exact if target.precision == "float32" else nullcontext():
        return (function or target)(images)


def values_at(values: Tensor, index: Tensor) -> Tensor:
    """Values (B, L) or (B, L, K) at patches (B, N) -> (B, N) or (B, N, K)."""
    return take(values, index) if values.ndim == 3 else values.gather(1, index)


def _position(table: Tensor, index: Tensor) -> Tensor:
    """Table (1, 1 + L, D) at patches (B, N) -> (B, 1 + N, D), the class token's row first."""
    return F.embedding(F.pad(index + 1, (1, 0)), table[0])


def take(values: Tensor, index: Tensor) -> Tensor:
    """(B, N, D) and (B, K) -> (B, K, D); whole rows, which is 10 times as fast as `gather` on a CPU."""
    rows = torch.arange(len(index), device=index.device)[:, None] * values.shape[1] + index
    return values.flatten(0, 1).index_select(0, rows.flatten()).view(*index.shape, values.shape[-1])
