"""The input and the result of a protocol."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mim_bench.config.run import RunConfig
from mim_bench.config.schedule import ScheduleConfig
from mim_bench.data.crop import EvalCrop
from mim_bench.data.run_data import Data
from mim_bench.data.split import Split
from mim_bench.errors import UserError
from mim_bench.evaluate import features
from mim_bench.model.vit import Encoder
from mim_bench.records.record import Metric
from mim_bench.targets.build import geometry
from mim_bench.train import distributed, loop
from mim_bench.train.backend import accelerate
from mim_bench.train.training import Training


@dataclass(frozen=True)
class ProtocolResult:
    """The result of a protocol."""

    correct: dict[str, np.ndarray]
    """Readout -> (N,) bool: which evaluated images were right."""
    notes: tuple[str, ...] = ()
    """Choices that the record must state."""
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Readout -> accuracy after each epoch on labelled training images that were not trained on."""
    values: dict[str, float] = field(default_factory=dict)
    """Name -> value of what is no accuracy, as `record.Metric` names it."""
    metrics: tuple[Metric, ...] = ()
    """Numbers with an error of their own kind, whole."""


def clean_crop(config: RunConfig) -> EvalCrop:
    """The central crop of a complete config."""
    size, fraction = geometry(config).image_size, config.data.crop_fraction
    return EvalCrop(size=size, crop_fraction=fraction)


def first_images(config: RunConfig, split: Split, num: int, device: torch.device) -> Tensor:
    """First `num` clean images (or fewer) from the front of a split, (N, C, H, W) uint8."""
    index = torch.arange(min(num, split.num_images)).split(config.evaluate.batch_size)
    return torch.cat(
        [images for images, _ in split.batches(index, clean_crop(config), device=device)]
    )


def from_memory(values: Tensor) -> loop.Batches:
    """Batches of what is held for every training image, (N, ...), by the images' indices."""

    def batches(index_batches: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index in index_batches:
            yield values[index.to(values.device, non_blocking=True)], index

    return batches


class Features:
    """The frozen readouts of one encoder, which is made fast, taken once for all protocols that use them."""

    def __init__(
        self,
        config: RunConfig,
        data: Data,
        encoder: Encoder,
        device: torch.device,
        names: tuple[str, ...] = features.READOUTS,
    ) -> None:
        accelerate(encoder, device, config.runtime)
        self.config, self.data, self.encoder, self.device = config, data, encoder, device
        self.readouts = names
        self.names = tuple(name for name in names if not name.endswith(f"/{features.ATTENTIVE}"))
        self.attentive_layers = features.pooled_by(features.ATTENTIVE, names)
        self.patch_layers = features.pooled_by(features.PATCHES, names)
        self.geometry = geometry(config)
        self._stored = _parts(self.names)
        self._kept: dict[str, Tensor] = {}

    @property
    def crop(self) -> EvalCrop:
        """The central crop: clean images, the same function for training and test."""
        return clean_crop(self.config)

    def encode(self, images: Tensor) -> Tensor:
        """8-bit images (B, C, H, W) -> (B, R, D) float32, without gradient."""
        return self._encoded(lambda encoder, x: features.readouts(encoder, x, self._stored), images)

    def tokens(self, images: Tensor, layer: str = "last") -> Tensor:
        """8-bit images (B, C, H, W) -> tokens of a layer (B, 1 + L, D), class token first, without gradient."""
        return self._encoded(lambda encoder, x: features.layers(encoder, x, (layer,))[0], images)

    def patches(self, images: Tensor, layer: str = "last") -> Tensor:
        """8-bit images (B, C, H, W) -> patches of a layer (B, L, D), without gradient."""
        return self.tokens(images, layer)[:, int(features.has_class_token(self.encoder)) :]

    def _encoded(self, function: Callable[[Encoder, Tensor], Tensor], images: Tensor) -> Tensor:
        self.encoder.eval()
        normalized = self.normalize(images.float() / 255)
        with torch.no_grad(), loop.autocast(self.device, self.config.runtime):
            return function(self.encoder, normalized)

    def normalize(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> what the encoder takes."""
        return self.geometry.normalize(images)

    def over(self, function: Callable[[Tensor], Tensor], split: Split, index: Tensor) -> Tensor:
        """Result of a function of 8-bit images (B, C, H, W) on the clean images at `index`, (N, ...).

        One row an image of the split, 0 outside `index`. Without gradient. Images are split over the ranks, and each
        rank gets all rows.
        """
        local, num_counted = distributed.local_batches(index.split(self.config.evaluate.batch_size))
        batches = split.batches(
            local, self.crop, device=self.device, num_workers=self.data.num_workers
        )
        return features.extract(function, batches, split.num_images, num_counted)

    def of(self, split: Split, name: str) -> Tensor:
        """A readout of every image of a split, (N, D) float32; (N, 2 D) where two are joined, (N, L D) of patches."""
        layer, _, pooling = name.partition("/")
        if pooling == features.PATCHES:
            return self._all_patches(split, layer)
        kept = self.clean(split)
        parts = [kept[:, self._stored.index(part)] for part in _parts((name,))]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _all_patches(self, split: Split, layer: str) -> Tensor:
        limit = self.config.runtime.memory_gb
        width = self.geometry.num_patches * self.config.model.embed_dim
        if (size := 4e-9 * split.num_images * width) > limit:
            raise UserError(
                f"readout '{layer}/{features.PATCHES}': {split.num_images:,} images of {width:,} values are "
                f"{size:.1f} GB; runtime.memory_gb={limit:g} allows fewer; data.limit_images takes fewer"
            )
        indices = torch.arange(split.num_images)
        joined = self.over(lambda x: self.patches(x, layer).flatten(1).float(), split, indices)
        return _finite(joined, split)

    def clean(self, split: Split) -> Tensor:
        """Readouts of every image of a split, (N, R, D) float32; UserError where they are not finite.

        With the default names they are in the order of `features.READOUTS`.
        """
        if split.name not in self._kept:
            indices = torch.arange(split.num_images)
            self._kept[split.name] = _finite(self.over(self.encode, split, indices), split)
        return self._kept[split.name]


def _finite(features: Tensor, split: Split) -> Tensor:
    """Features (N, ...) of a split's images, none of them infinite; else UserError."""
    if num_bad := int((~torch.isfinite(features).flatten(1).all(1)).sum()):
        raise UserError(
            f"features of {num_bad} of {split.num_images} {split.name} images are not finite: the encoder "
            "overflows on them; nothing is recorded"
        )
    return features


def _parts(names: Sequence[str]) -> tuple[str, ...]:
    """Readouts without those that join several: the parts of two, nothing of all patches."""
    readouts = []
    for name in names:
        layer, _, poolings = name.partition("/")
        if poolings == features.PATCHES:
            continue
        readouts += [f"{layer}/{pooling}" for pooling in poolings.split("+")]
    return tuple(dict.fromkeys(readouts))


@dataclass(frozen=True)
class EvalContext:
    """An encoder to evaluate, and the images to do it on; never the trainer."""

    features: Features
    folder: Path
    """Folder in which a protocol that trains keeps its log and checkpoints."""
    key: str
    """Hash of all that the evaluation depends on, for those checkpoints."""
    report: loop.Report | None = None

    @property
    def config(self) -> RunConfig:
        return self.features.config

    @property
    def data(self) -> Data:
        return self.features.data

    @property
    def device(self) -> torch.device:
        return self.features.device

    @property
    def test(self) -> Split:
        """The images that are evaluated."""
        return self.data.evaluate

    def labels(self, split: Split) -> Tensor:
        """(N,) int64 on the device."""
        assert split.labels is not None
        return split.labels.to(self.device)

    def training(self, name: str, schedule: ScheduleConfig, num_images: int) -> Training:
        """A training of this evaluation, for the loop."""
        return Training(
            name=name,
            key=self.key,
            folder=self.folder,
            schedule=schedule,
            seed=self.config.seed,
            num_images=num_images,
            runtime=self.config.runtime,
            device=self.device,
        )
