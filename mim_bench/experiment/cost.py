"""The cost of a run, known before it starts and without its data at hand.

FLOPs of one image come from `mim_bench.evaluate.flops`. The fit of a target is shared by all runs of a table and
estimated apart (`fit_flops`).

Left out: losses, optimiser steps, the solver of `low_shot`, decoding and crops; of storage, logs, records
and pictures.
"""

import json
import math
import statistics
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from mim_bench.config.evaluation import FinetuneConfig
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.resolve import validated
from mim_bench.config.run import ModelConfig, RunConfig
from mim_bench.config.schedule import ScheduleConfig
from mim_bench.config.source import source_spec
from mim_bench.config.trainings import needs_pretraining
from mim_bench.data.image_set import ArraySet
from mim_bench.data.run_data import Data, complete, open_data
from mim_bench.data.split import Split
from mim_bench.evaluate import features, flops, speed
from mim_bench.evaluate.flops import ModelCount
from mim_bench.evaluate.partial import trained_part
from mim_bench.evaluate.scratch import equal_flops
from mim_bench.records.record import DataFacts
from mim_bench.target import Geometry
from mim_bench.targets.build import geometry
from mim_bench.train import environment

_WARM_UP_STEPS, _TIMED_STEPS = 3, 7
_STEP_FLOPS = {"cpu": 1e11, "cuda": 5e13, "mps": 1e12}
"""FLOPs of a timed step at most: a cluster's batch would keep a laptop busy for hours."""


_SOLVER_PASSES = 500
"""Passes of logistic regression over the training images, all penalties together; measured 200 to 800 at `small`."""


@dataclass(frozen=True)
class Cost:
    """FLOPs and storage of one run."""

    pretrain_flops: float
    """Forward and backward of the model and forward of the target, over all images seen."""
    protocol_flops: dict[str, float]
    """FLOPs by protocol, in the order they run; features that several share are counted in the first."""
    storage_bytes: int
    """Weights and checkpoints when there are most: a third one exists while it is written."""
    kept_bytes: int
    """Weights that remain."""
    num_files: int
    """Files that remain in the run's folder."""

    @property
    def total_flops(self) -> float:
        """FLOPs of pre-training and all protocols."""
        return self.pretrain_flops + sum(self.protocol_flops.values())


def hours(flops: float, flops_per_s: float) -> float:
    """Hours that so many FLOPs take at a sustained speed."""
    return flops / flops_per_s / 3600


def sized(config: RunConfig) -> RunConfig:
    """The config with what it leaves to the data filled in, the data unopened where its size is known.

    Means and deviations are then stand-ins (but ImageNet's are its own): no cost depends on them, but the
    hash does.
    """
    return complete(config, _data(config))


def estimate(config: RunConfig, data: Data | None = None) -> Cost:
    """The cost of a run on `data`; unset: opened only where `sized` opens it."""
    data = data or _data(config)
    config = complete(config, data)
    names, pretrains = set(config.evaluate.protocols), needs_pretraining(config)
    images_seen = _images_seen(config.pretrain, data.train.num_images) if pretrains else 0
    most_bytes, kept = _bytes(config, data, pretrains)
    return Cost(
        pretrain_flops=float(images_seen * flops.step(config)) if images_seen else 0.0,
        protocol_flops=_protocol_flops(config, data),
        storage_bytes=most_bytes,
        kept_bytes=kept,
        # config, manifest; weights, their facts, curve and picture; records; correctness; curves
        num_files=2
        + 5 * pretrains
        + len(names)
        + len(names - {"speed", "segment"})
        + len(names & {"linear", "attentive", "finetune", "scratch", "scratch_flops"}),
    )


def fit_flops(config: RunConfig) -> float | None:
    """FLOPs of fitting the target, roughly: each of `fit_epochs` passes forward and backward.

    0 if there is nothing to fit, unset if the target does not say how many passes it takes. What a fit
    needs apart from the target, such as a decoder, is not counted.
    """
    data = _data(config)
    count, params = flops.target(complete(config, data)), config.target.params
    if not count.needs_fit:
        return 0.0
    epochs = params.get("fit_epochs")
    return None if epochs is None else 3.0 * count.forward * data.train.num_images * epochs


def device_speed(config: RunConfig, data: Data | None = None) -> float:
    """FLOP/s that the pre-training step sustains on this device: median over a few steps; `data` as in `estimate`."""
    config = complete(config, data) if data else sized(config)
    device = environment.choose_device(config.runtime.device)
    per_image = flops.step(config)
    batch = min(speed.part_size(config), max(2, int(_STEP_FLOPS[device.type] / per_image)))
    schedule = config.pretrain.model_dump() | {"batch_size": batch, "accumulation_steps": 1}
    torch.backends.cuda.matmul.allow_tf32 = config.runtime.tf32
    stepper = speed.Stepper(validated(config.model_dump() | {"pretrain": schedule}), device)
    for _ in range(_WARM_UP_STEPS):
        stepper.step()
    seconds = [speed.timed(stepper.step, device) for _ in range(_TIMED_STEPS)]
    return batch * per_image / statistics.median(seconds)


# ---- images


def _data(config: RunConfig) -> Data:
    """Splits of the right number and size, their pixels unread."""
    content = config.model_dump(mode="json", include={"data", "evaluate"})
    content["data"] |= {"image_size": None}  # or it is checked against a patch that is not here
    content["target"] = {"name": "none", "class_path": "none", "version": 0}
    return _data_of(json.dumps(content, sort_keys=True))


@lru_cache(maxsize=8)
def _data_of(key: str) -> Data:
    config = validated(json.loads(key))
    settings = config.data
    spec = source_spec(settings.source)
    if spec.size is None:
        streamed = {"runtime": {"memory_gb": 1e-9}}  # the pixels are not wanted
        return open_data(validated(json.loads(key) | streamed), torch.device("cpu"))
    size, num_classes = spec.size.image_size, spec.size.num_classes
    channels = settings.in_chans or spec.size.num_channels
    num_train, num_test = spec.size.num_train_images, spec.size.num_test_images
    if settings.evaluate_on == "tune":  # the slice is taken class by class
        num_test = num_classes * max(round(settings.tune_fraction * num_train / num_classes), 1)
        num_train -= num_test
    max_images = settings.limit_images or num_train + num_test

    def split(num: int) -> Split:
        pixels = np.broadcast_to(np.uint8(0), (min(num, max_images), *(size or (1, 1)), channels))
        images = ArraySet(pixels, np.arange(len(pixels)) % num_classes, spec.name)
        return Split(images, name=spec.name, image_size=size, num_channels=channels, pixels=None)

    known = spec.normalisation if channels == 3 else None
    stand_in = known or ((0.5,) * channels, (0.25,) * channels)
    facts = DataFacts.model_construct(source=settings.source)
    return Data(split(num_train), split(num_test), stand_in, facts, num_workers=0)


@lru_cache(maxsize=8)
def _num_classes(data: Data) -> int:
    return data.num_classes


def _images_seen(schedule: ScheduleConfig, num_images: int) -> int:
    """Whole batches only, as `Training`."""
    return num_images // schedule.batch_size * schedule.batch_size * schedule.epochs


# ---- protocols and storage


def _protocol_flops(config: RunConfig, data: Data) -> dict[str, float]:
    num_train, num_test = data.train.num_images, data.evaluate.num_images
    encoder = flops.frozen_encoder(config)
    head = 2 * len(features.READOUTS) * config.model.embed_dim  # a class or a neighbour, an image
    not_taken = {"train": num_train, "test": num_test}

    def frozen(*splits: str) -> int:
        return encoder * sum(not_taken.pop(split, 0) for split in splits)

    def of_protocol(name: str) -> int:
        match name:
            case "knn":
                return frozen("train", "test") + head * num_train * num_test
            case "linear" if config.linear.solver == "lbfgs":
                solved = 3 * _SOLVER_PASSES * num_train + num_test
                return frozen("train", "test") + head * _num_classes(data) * solved
            case "linear":
                images_seen = _images_seen(config.linear, num_train)
                encoded = encoder * images_seen if config.linear.augment else frozen("train")
                return (
                    encoded
                    + frozen("test")
                    + head * _num_classes(data) * (3 * images_seen + num_test)
                )
            case "attentive":
                images_seen = _images_seen(config.attentive, num_train)
                block = 4 * (geometry(config).num_patches + 1) * config.model.embed_dim**2
                return frozen("train", "test") + block * (3 * images_seen + num_test)
            case "segment":  # at most
                return encoder * (config.segment.max_train_images + config.segment.max_test_images)
            case "low_shot":
                return frozen("train", "test")
            case "finetune" | "scratch" | "scratch_flops" | "partial":
                schedule = _schedule(config, data, name)
                return sum(
                    _trained_flops(schedule, data, part) for part in _parts(config, data, name)
                )
            case "speed":
                steps = config.speed.warmup_steps + config.speed.steps
                return steps * speed.part_size(config) * flops.step(config)
            case _:  # from outside the package: at least the features that it reads
                return frozen("train", "test") if PROTOCOLS[name].has_readouts else 0

    once = {name: float(of_protocol(name)) for name in config.evaluate.protocols}
    return {name: value * (1 + PROTOCOLS[name].has_control) for name, value in once.items()}


def _parts(config: RunConfig, data: Data, protocol: str) -> list[ModelCount]:
    """The classifiers that a protocol trains one after the other."""
    of_whole_model = ("finetune", "scratch", "scratch_flops")
    numbers: list[float | None] = [None] if protocol in of_whole_model else []
    if protocol == "partial":
        numbers += [number for number in config.partial.blocks if number < config.model.depth]
    settings, shape = config.model.model_dump_json(), geometry(config)
    return [_classifier(settings, shape, _num_classes(data), number) for number in numbers]


@lru_cache(maxsize=1024)
def _classifier(
    settings: str, shape: Geometry, num_classes: int, num_blocks: float | None
) -> ModelCount:
    """A classifier of which all is trained, or the last `num_blocks` blocks."""
    model = ModelConfig.model_validate_json(settings)
    if num_blocks is None:
        return flops.classifier(model, shape, num_classes)
    return flops.classifier(model, shape, num_classes, lambda e: trained_part(e, num_blocks))


def _schedule(config: RunConfig, data: Data, protocol: str) -> FinetuneConfig:
    """Training schedule of a protocol's classifiers."""
    if protocol == "scratch_flops":
        return equal_flops(config, _num_classes(data))
    return config.scratch if protocol == "scratch" else config.finetune


def _trained_flops(schedule: FinetuneConfig, data: Data, part: ModelCount) -> int:
    """FLOPs of a classifier's training, its accuracy after each epoch, and its test."""
    num_train = data.train.num_images
    held_out = round(num_train * schedule.holdout_fraction)
    measured = schedule.epochs * held_out + data.evaluate.num_images
    return _images_seen(schedule, num_train - held_out) * part.step + measured * part.forward


def _bytes(config: RunConfig, data: Data, pretrains: bool) -> tuple[int, int]:
    """The most there is at any time, and what remains."""

    def num_checkpoints(schedule: ScheduleConfig) -> int:
        """Largest number of checkpoints; unknown where they are kept by time."""
        return math.ceil(schedule.epochs / (config.runtime.checkpoint_every_epochs or 1))

    most_bytes, kept, number = [0], 0, num_checkpoints(config.pretrain)
    if pretrains:
        model = flops.masked(config)
        checkpoint_bytes, kept = (
            model.saved_bytes + flops.target(config).saved_bytes,
            model.kept_bytes,
        )
        most_bytes += [min(number, 3) * checkpoint_bytes, min(number, 2) * checkpoint_bytes + kept]
    for name in config.evaluate.protocols:  # the checkpoints of its parts go when it is done
        number = num_checkpoints(_schedule(config, data, name))
        parts = [part.saved_bytes for part in _parts(config, data, name)]
        most_bytes.append(kept + min(number, 2) * sum(parts) + (number > 2) * max(parts, default=0))
    return max(most_bytes), kept
