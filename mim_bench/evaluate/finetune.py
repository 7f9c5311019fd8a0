"""Fine-tuning as MAE does it; `partial` and `scratch` train the same classifier otherwise.

MAE, appendix A.1, Table 9: AdamW with layer decay, mean of patch tokens with a fresh norm, drop path,
RandAugment, mixup, CutMix, label smoothing, all through timm.

Deliberate differences: random erasing is off by default, as in the paper and unlike the repository. With
`finetune.holdout_fraction` some labelled training images are kept out, on which every epoch's accuracy is
measured, so that a learning curve costs no look at the test split, and says whether it has become flat.

Legend: B batch, K classes.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from mim_bench import rng
from mim_bench.config.evaluation import FinetuneConfig
from mim_bench.data.crop import Crop
from mim_bench.data.split import Split
from mim_bench.errors import UserError
from mim_bench.evaluate.context import EvalContext, ProtocolResult
from mim_bench.model.mae import build_encoder
from mim_bench.model.vit import Encoder
from mim_bench.target import Geometry
from mim_bench.targets.build import geometry
from mim_bench.train import checkpoint, distributed, loop
from mim_bench.train.backend import accelerate
from mim_bench.train.distributed import shard
from mim_bench.train.log import read_log
from mim_bench.train.optimizer import adamw


@dataclass
class ClassifyTask:
    """Supervised training of a whole classifier, as the loop sees it."""

    model: Encoder
    labels: Tensor
    schedule: FinetuneConfig
    geometry: Geometry
    num_classes: int
    seed: int
    stream: str

    def __post_init__(self) -> None:
        mixes = self.schedule.mixup > 0 or self.schedule.cutmix > 0
        self.mixup = (
            Mixup(
                mixup_alpha=self.schedule.mixup,
                cutmix_alpha=self.schedule.cutmix,
                label_smoothing=self.schedule.smoothing,
                num_classes=self.num_classes,
            )
            if mixes
            else None
        )
        device = str(self.labels.device)
        self.erase = RandomErasing(self.schedule.erasing, mode="pixel", device=device)

    @property
    def modules_to_save(self) -> dict[str, nn.Module]:
        """The classifier."""
        return {"model": self.model}

    def loss(self, inputs: Tensor, index: Tensor, *, epoch: int, step: int) -> Tensor:
        """8-bit images (B, C, H, W) -> mean (soft-target) cross-entropy."""
        images = self.geometry.normalize(inputs.float() / 255)
        truth = self.labels[index.to(self.labels.device, non_blocking=True)]
        # timm draws from the global generators: seeded by the first sample of the part, over all ranks
        part = rng.integer(
            seed=self.seed,
            epoch=epoch,
            stream=f"{self.stream} mix",
            index=distributed.first_index(index),
        )
        random.seed(part)
        np.random.seed(part)
        if self.schedule.erasing:
            images = self.erase(images)
        if self.mixup is None:
            return F.cross_entropy(
                self.model(images).float(), truth, label_smoothing=self.schedule.smoothing
            )
        images, soft = self.mixup(images, truth)
        return SoftTargetCrossEntropy()(self.model(images).float(), soft)

    def after_step(self, step: int, num_steps: int) -> None:
        """Does nothing: no teacher follows a classifier."""


class RandAugment:
    """timm's RandAugment on one 8-bit image, as a function of (seed, epoch, sample index)."""

    def __init__(self, text: str, mean: Sequence[float], *, seed: int, epoch: int) -> None:
        fill = tuple(round(255 * value) for value in mean)
        self.transform = rand_augment_transform(
            text, {"img_mean": fill if len(fill) == 3 else fill[0]}
        )
        self.seed, self.epoch = seed, epoch

    def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
        """(H, W, C) uint8 -> the same shape."""
        state = rng.integer(seed=self.seed, epoch=self.epoch, stream="rand augment", index=index)
        random.seed(state)
        np.random.seed(state)
        is_grey = image.shape[2] == 1
        changed = self.transform(Image.fromarray(image[:, :, 0] if is_grey else image))
        array = np.asarray(changed)
        return array[:, :, None] if is_grey else array


def run(context: EvalContext) -> ProtocolResult:
    """Fine-tunes the context's encoder."""
    schedule = context.config.finetune
    model = build_classifier(context, schedule, pretrained=True)
    return train_classifier(context, model, "finetune", schedule)


_FRESH = ("fc_norm.", "head.")
"""Tensors that a classifier does not take from the encoder."""


def build_classifier(
    context: EvalContext, schedule: FinetuneConfig, *, pretrained: bool
) -> Encoder:
    """A classifier with a fresh norm and head, on the context's encoder or on random weights."""
    config = context.config
    model = build_encoder(
        config.model,
        geometry(config),
        seed=config.seed,
        num_classes=context.data.num_classes,
        drop_path=schedule.drop_path,
    )
    if pretrained:
        tensors = model.state_dict()
        copied = {
            name: tensor
            for name, tensor in context.features.encoder.state_dict().items()
            if not name.startswith("norm.")  # replaced by fc_norm
        }
        fresh = {name: tensor for name, tensor in tensors.items() if name.startswith(_FRESH)}
        checkpoint.load_exactly(model, fresh | copied, "finetune")
    model.pos_embed.requires_grad_(True)  # as MAE: frozen in pre-training only
    return model


def train_classifier(
    context: EvalContext,
    model: Encoder,
    name: str,
    schedule: FinetuneConfig,
    trained: Sequence[nn.Module] | None = None,
) -> ProtocolResult:
    """Trains a classifier with labels and tests it once, after the last epoch.

    `trained`: the modules that are put into training mode; by default all. Which weights move is said by
    their `requires_grad`.
    """
    config, data, device = context.config, context.data, context.device
    model = model.to(device)
    accelerate(model, device, config.runtime)
    distributed.sync_drop_path(model)
    shard(model, config.runtime)
    task = ClassifyTask(
        model=model,
        labels=context.labels(data.train),
        schedule=schedule,
        geometry=geometry(config),
        num_classes=data.num_classes,
        seed=config.seed,
        stream=name,
    )
    optimizer = adamw(layer_decay_groups(model, schedule), schedule)
    kept, held_out = hold_out(data.train.num_images, schedule.holdout_fraction)
    training = context.training(name, schedule, len(kept))

    def training_mode() -> None:
        model.eval()
        for module in [model] if trained is None else trained:
            module.train()

    def measure() -> dict[str, float]:
        correct = _correct(context, model, data.train, held_out)
        training_mode()
        return {"holdout_top1": float(correct.mean())}

    training_mode()
    loop.train(
        training,
        task,
        optimizer,
        _batches(context, kept, schedule),
        context.report,
        measure if len(held_out) else None,
    )
    everything = torch.arange(context.test.num_images)
    curve = tuple(line["holdout_top1"] for line in read_log(training.log) if "holdout_top1" in line)
    return ProtocolResult(
        {"model": _correct(context, model, context.test, everything)},
        curves={"model": curve} if curve else {},
        notes=(_flatness(name, curve),) if len(curve) >= _FLAT_PARTS else (),
    )


_FLAT_PARTS = 5
"""The last of so many parts of a curve says whether it still rises."""


def _flatness(name: str, curve: Sequence[float]) -> str:
    """`finetune: held-out accuracy +0.3 points in the last fifth of its epochs`."""
    part = len(curve) // _FLAT_PARTS
    before, last = np.mean(curve[-2 * part : -part]), np.mean(curve[-part:])
    return f"{name}: held-out accuracy {100 * (last - before):+.1f} points in the last fifth of its epochs"


def hold_out(num_images: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices to train on and indices held out, the same for every run of a data set."""
    order = rng.permutation(num_images, seed=0, epoch=0, stream="finetune holdout")
    num_held_out = round(num_images * fraction)
    return order[num_held_out:], order[:num_held_out]


def _correct(context: EvalContext, model: Encoder, split: Split, index: Tensor) -> np.ndarray:
    """Correctness of the model on the clean images at `index`, (N,) bool in that order."""
    config, device = context.config, context.device
    model.eval()

    def predict(images: Tensor) -> Tensor:
        normalized = geometry(config).normalize(images.float() / 255)
        with loop.autocast(device, config.runtime):
            logits = model(normalized)
        return torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), -1)

    device_index = index.to(device)
    predictions = context.features.over(predict, split, index)[device_index]
    if num_bad := int((predictions < 0).sum()):
        raise UserError(
            f"outputs of {num_bad} of {len(index)} {split.name} images are not finite; try a lower blr"
        )
    return (predictions == context.labels(split)[device_index]).cpu().numpy()


def layer_decay_groups(model: Encoder, schedule: FinetuneConfig) -> list[dict[str, Any]]:
    """timm's groups of layer decay; no weight decay for 1-D parameters, class token and positions."""
    return param_groups_layer_decay(
        model,
        weight_decay=schedule.weight_decay,
        layer_decay=schedule.layer_decay,
        no_weight_decay_list=tuple(model.no_weight_decay()),
    )


def _batches(context: EvalContext, kept: Tensor, schedule: FinetuneConfig) -> loop.Batches:
    """Augmented images; the loop's index n means training image `kept[n]`."""
    data, config = context.data, context.config
    mean = geometry(config).mean
    crop = Crop(size=geometry(config).image_size, scale=schedule.crop_scale)

    def batches(index_batches: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        augment = (
            RandAugment(schedule.rand_augment, mean, seed=config.seed, epoch=epoch)
            if schedule.rand_augment
            else None
        )
        return data.train.batches(
            [kept[index] for index in index_batches],
            crop,
            seed=config.seed,
            epoch=epoch,
            device=context.device,
            num_workers=data.num_augment_workers if augment else data.num_workers,
            per_image=augment,
        )

    return batches
