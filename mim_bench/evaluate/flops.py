"""FLOPs and bytes of models and targets, counted for one image.

FLOPs are those of matrix products, convolutions and attention, a multiplication and its addition as two,
counted by torch on the `meta` device: shapes only, and one block for all that are alike, so ViT-H takes no
memory and less than a second. Attention is counted by its plain form, as torch's counter knows no attention
kernel of the CPU. A target whose code needs values is counted on one image on the CPU. Losses and optimiser
steps are left out.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mim_bench.config.run import ModelConfig, RunConfig
from mim_bench.evaluate import features
from mim_bench.model import masking
from mim_bench.model.mae import MaskedAutoencoder, build_encoder
from mim_bench.model.vit import Encoder
from mim_bench.target import Geometry, TargetContext
from mim_bench.targets.build import geometry, target_class

_META = torch.device("meta")


@dataclass(frozen=True)
class ModelCount:
    """FLOPs of one image and bytes of a model that is trained."""

    forward: int
    """FLOPs of an image."""
    step: int
    """FLOPs of an image, forward and backward."""
    saved_bytes: int
    """Bytes of a checkpoint: weights and AdamW's two moments."""
    kept_bytes: int
    """Bytes of the weights that remain."""


@dataclass(frozen=True)
class TargetCount:
    """FLOPs of one image and bytes of a target."""

    forward: int
    """FLOPs of an image."""
    dim: int
    """Width of the prediction head."""
    saved_bytes: int
    """Bytes of the target in a checkpoint: the state of a target that learns, else 0."""
    needs_fit: bool
    """True if the target must first be fitted to training images."""
    num_views: int
    """Views of an image in a step; more than one are unmasked."""
    has_class: bool
    """True if the class token is predicted from too."""


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts the FLOPs of what runs inside, attention by its plain form."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def step(config: RunConfig) -> int:
    """FLOPs of one image in a pre-training step, the target included; the config must be sized."""
    of_target = target(config)
    return of_target.num_views * (masked(config).step + of_target.forward)


def masked(config: RunConfig) -> ModelCount:
    """FLOPs and bytes of the masked autoencoder; the config must be sized."""
    shape = geometry(config)
    of_target, num_visible = (
        target(config),
        masking.MaskSampler(config.mask, shape.grid).num_visible,
    )
    if of_target.num_views > 1:
        num_visible = shape.num_patches
    settings = config.model.model_dump_json()
    return _masked(settings, shape, num_visible, of_target.dim, has_class=of_target.has_class)


@lru_cache(maxsize=1024)
def _masked(
    settings: str, shape: Geometry, num_visible: int, dim: int, *, has_class: bool
) -> ModelCount:
    config = ModelConfig.model_validate_json(settings)
    small = config.model_copy(update={"depth": 1, "decoder_depth": min(config.decoder_depth, 1)})
    with _META:
        model = MaskedAutoencoder(small, shape, dim, num_visible=num_visible)
    shuffle = torch.arange(shape.num_patches, device=_META)[None]
    times = {"model.encoder.blocks.0": config.depth}
    if config.mask_tokens != "encoder_light" and config.decoder_depth:
        times["model.decoder_blocks.0"] = config.decoder_depth
    count = _trained(_Predict(model, has_class), times, _image(shape, _META), shuffle)
    # the encoder is saved on its own too
    encoder_bytes = _size(model.encoder, {"blocks.0": config.depth})
    return replace(count, kept_bytes=count.kept_bytes + encoder_bytes)


class _Predict(nn.Module):
    """Training step of `MaskedAutoencoder` as a module's forward, so that FLOPs are counted by submodule."""

    def __init__(self, model: MaskedAutoencoder, has_class: bool) -> None:
        super().__init__()
        self.model, self.has_class = model, has_class

    def forward(self, images: torch.Tensor, shuffle: torch.Tensor) -> torch.Tensor:
        return self.model.predict(images, shuffle, hidden_only=True, class_token=self.has_class)


def target(config: RunConfig) -> TargetCount:
    """FLOPs and bytes of the target; the config must be sized."""
    params = json.dumps(config.target.params, sort_keys=True)
    settings = config.model.model_dump_json()
    return _target(config.target.class_path, params, geometry(config), settings)


@lru_cache(maxsize=1024)
def _target(class_path: str, params: str, shape: Geometry, settings: str) -> TargetCount:
    cls = target_class(class_path)
    parsed: Any = cls.Params.model_validate_json(params)
    model = ModelConfig.model_validate_json(settings)

    def on(device: torch.device) -> TargetCount:
        # not built on meta: what a target caches for itself must stay fit for use
        target = cls(parsed, TargetContext(shape, model))
        needs_fit = target.needs_fit
        target.skip_fit()
        if target.follows_student:
            with _META:
                target.begin(MaskedAutoencoder(model, shape, target.dim))
        saved = _size(target) if target.follows_student else 0
        target.to(device)
        with counting() as counter:
            target(_image(shape, device))
            if target.has_image_loss:
                target.image_values(_image(shape, device))
        has_class = target.has_image_loss or target.num_views > 1
        return TargetCount(
            counter.get_total_flops(), target.dim, saved, needs_fit, target.num_views, has_class
        )

    try:
        return on(_META)
    except Exception:  # meta makes code fail in any way; a real fault comes back on the CPU
        return on(torch.device("cpu"))


def frozen_encoder(config: RunConfig) -> int:
    """FLOPs of an image's frozen features; the config must be sized."""
    return _frozen(config.model.model_dump_json(), geometry(config))


@lru_cache(maxsize=1024)
def _frozen(settings: str, shape: Geometry) -> int:
    with _META:
        encoder = build_encoder(ModelConfig.model_validate_json(settings), shape, seed=0)
    with counting() as counter:
        features.readouts(encoder, _image(shape, _META))
    return counter.get_total_flops()


def classifier(
    config: ModelConfig,
    shape: Geometry,
    num_classes: int,
    freeze: Callable[[Encoder], object] | None = None,
) -> ModelCount:
    """FLOPs and bytes of a classifier, trained whole or where `freeze` leaves it trainable."""
    small = config if freeze else config.model_copy(update={"depth": 1})
    with _META:
        encoder = build_encoder(small, shape, seed=0, num_classes=num_classes)
    encoder.pos_embed.requires_grad_(True)
    if freeze:
        freeze(encoder)
    times = {} if freeze else {"blocks.0": config.depth}
    return _trained(encoder, times, _image(shape, _META))


def _trained(model: nn.Module, times: Mapping[str, int], *inputs: torch.Tensor) -> ModelCount:
    """`times`: submodule -> how often the real model has it, one after another."""

    def total() -> int:
        by_module = counter.get_flop_counts()
        more = {f"{type(model).__name__}.{name}": n - 1 for name, n in times.items()}
        repeated = sum(n * sum(by_module[name].values()) for name, n in more.items())
        return counter.get_total_flops() + repeated

    with torch.enable_grad(), counting() as counter:
        output: torch.Tensor = model(*inputs)
        forward = total()
        output.sum().backward()
    size = _size(model, times)
    return ModelCount(forward, total(), size + 2 * _size(model, times, trained=True), size)


def _image(shape: Geometry, device: torch.device) -> torch.Tensor:
    return torch.zeros(1, shape.in_chans, *shape.image_size, device=device)


def _size(module: nn.Module, times: Mapping[str, int] = {}, *, trained: bool = False) -> int:
    """Bytes of what is saved, or of what of it is trained."""
    tensors = module.parameters() if trained else module.state_dict().values()
    num_bytes = sum(t.numel() * t.element_size() for t in tensors if t.requires_grad or not trained)
    repeated = (
        (n - 1) * _size(module.get_submodule(name), trained=trained) for name, n in times.items()
    )
    return num_bytes + sum(repeated)
