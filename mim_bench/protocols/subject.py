"""What a protocol is given, and what it answers."""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mim_bench import feature, loop
from mim_bench.config import RunConfig
from mim_bench.data import EvalCrop, Split
from mim_bench.dataset import Data
from mim_bench.resolve import geometry


@dataclass(frozen=True)
class Answer:
    """What a protocol found."""

    correct: dict[str, np.ndarray]
    """Readout -> (N,) bool: which evaluated images were right."""
    notes: tuple[str, ...] = ()
    """Choices that the record must tell."""


@dataclass(eq=False)
class Subject:
    """An encoder to evaluate, and the images to do it on; never the trainer."""

    config: RunConfig
    data: Data
    encoder: VisionTransformer
    device: torch.device
    folder: Path
    """Where a protocol that trains keeps its log and checkpoints."""
    key: str
    """Hash of all that the evaluation depends on, for those checkpoints."""
    report: loop.Report | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def eval_crop(self) -> EvalCrop:
        """The central crop: clean images, the same function for training and test."""
        return EvalCrop(
            size=geometry(self.config).image_size, crop_fraction=self.config.data.crop_fraction
        )

    @property
    def test(self) -> Split:
        """The images that are evaluated."""
        return self.data.evaluate

    def labels(self, split: Split) -> Tensor:
        """(N,) int64 on the device."""
        assert split.labels is not None
        return split.labels.to(self.device)

    def encode(self, images: Tensor) -> Tensor:
        """8-bit images (B, C, H, W) -> frozen readouts (B, R, D) float32."""
        self.encoder.eval()
        normalized = geometry(self.config).normalize(images.float() / 255)
        with torch.no_grad(), loop.autocast(self.device, self.config.runtime):
            return feature.readouts(self.encoder, normalized)

    def clean_features(self, split: Split) -> Tensor:
        """Readouts of every image of a split, (N, R, D) float32; taken once, then kept."""
        return self._clean_features(id(split), split)

    @functools.cache  # noqa: B019 - a subject lives as long as its evaluation
    def _clean_features(self, _: int, split: Split) -> Tensor:
        batches = split.batches(
            feature.in_order(split.num_images, self.config.evaluate.batch_size),
            self.eval_crop,
            seed=0,
            epoch=0,
            device=self.device,
            num_workers=self.data.num_workers,
        )
        return feature.extract(self.encode, batches, split.num_images)
