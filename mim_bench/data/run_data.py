"""The images of a run, and what the config leaves to them: size, channels, statistics."""

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.distributed as dist

from mim_bench.config.resolve import validated
from mim_bench.config.run import DataConfig, RunConfig, digest
from mim_bench.config.trainings import fit_batches
from mim_bench.cores import num_cores
from mim_bench.data.duplicates import count_duplicates
from mim_bench.data.image_set import ImageSet, hold_out, limit
from mim_bench.data.sources import open_source
from mim_bench.data.split import Split, load_split, normalisation
from mim_bench.errors import UserError
from mim_bench.records.record import DataFacts

_logger = logging.getLogger(__name__)
_TUNE_SEED = 0  # the held-out slice is the same for every run of a data set


@dataclass(frozen=True, eq=False)
class Data:
    """The splits of a run, ready for use."""

    train: Split
    evaluate: Split
    """Test split, or a slice held out of the training split."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    """Mean and std per channel, of images in [0, 1]."""
    facts: DataFacts
    num_workers: int
    """Reading processes, where the images are not in memory."""
    num_augment_workers: int = 0
    """Processes that augment image by image, which one core does more slowly than a GPU trains."""

    @property
    def summary(self) -> str:
        """Images, classes and what is evaluated on, in a line."""
        classes = "no labels" if self.train.labels is None else f"{self.num_classes:,} classes"
        facts = self.facts
        return (
            f"{facts.source}: {facts.num_train_images:,} training images, {classes}; evaluated on "
            f"{facts.num_evaluated_images:,} images, {facts.evaluated_on}"
            + f"; {facts.num_skipped_images:,} unreadable left out"
            * bool(facts.num_skipped_images)
        )

    @property
    def num_classes(self) -> int:
        """Classes of the labels."""
        if self.train.labels is None:
            raise UserError(f"data source '{self.facts.source}' has no labels")
        highest = int(self.train.labels.max())
        if self.evaluate.labels is not None:
            highest = max(highest, int(self.evaluate.labels.max()))
        return highest + 1


def open_data(config: RunConfig, device: torch.device) -> Data:
    """Opens the source, cuts the splits and keeps them in memory where they fit."""
    settings, runtime = config.data, config.runtime
    source = open_source(settings.source, skip_bad_images=settings.skip_bad_images)
    train, evaluated = source.train, source.test
    _check_labels(config, train, evaluated, source.split_rule)
    if settings.evaluate_on == "tune":
        train, evaluated = hold_out(train, settings.tune_fraction, seed=_TUNE_SEED)
    if settings.limit_images is not None:
        train = limit(train, settings.limit_images)
        evaluated = limit(evaluated, settings.limit_images)
    if settings.in_chans is not None and train.num_channels not in (None, settings.in_chans):
        raise UserError(
            f"data.in_chans={settings.in_chans}: the images of '{settings.source}' have "
            f"{train.num_channels} channels"
        )

    splits = [
        load_split(image_set, device=device, memory_gb=runtime.memory_gb, name=name)
        for image_set, name in ((train, "train"), (evaluated, settings.evaluate_on))
    ]
    facts = DataFacts(
        source=settings.source,
        fingerprint=digest([split.fingerprint for split in splits]),
        split=settings.evaluate_on,
        num_train_images=splits[0].num_images,
        num_evaluated_images=splits[1].num_images,
        num_skipped_images=source.train.num_skipped + source.test.num_skipped,
        limited=settings.limit_images is not None,
        evaluated_on=source.split_rule if settings.evaluate_on == "test" else "a slice of training",
        class_names=source.class_names,
        num_duplicates=count_duplicates(splits[0], splits[1], settings.source),
    )
    return Data(
        train=splits[0],
        evaluate=splits[1],
        normalisation=normalisation(splits[0], source),
        facts=facts,
        num_workers=_num_workers(config, is_needed=not splits[0].in_memory),
        num_augment_workers=_num_workers(
            config, is_needed=not splits[0].in_memory or device.type != "cpu"
        ),
    )


def _check_labels(config: RunConfig, train: ImageSet, evaluated: ImageSet, rule: str) -> None:
    """Before any training: could it be evaluated?"""
    protocols = ", ".join(config.evaluate.protocols)
    if protocols and train.labels is None:
        raise UserError(
            f"evaluate.protocols={protocols}: data source '{config.data.source}' has no labels; "
            "use --protocols none to pre-train only"
        )
    if protocols and evaluated.labels is None and config.data.evaluate_on == "test":
        raise UserError(
            f"evaluate.protocols={protocols}: the images to evaluate on, {rule}, have no labels; "
            "data.evaluate_on=tune holds some of the training images out for it"
        )


def _num_workers(config: RunConfig, *, is_needed: bool) -> int:
    """`runtime.num_workers` where it is set, else one a core up to 16, or none."""
    if config.runtime.num_workers is not None:
        return config.runtime.num_workers
    if not is_needed:
        return 0
    return min(16, max(2, _own_cores()))


def _own_cores() -> int:
    """Cores that this process may keep busy: its part of a machine that several processes of a run are on."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return torch.get_num_threads()
    if cores := os.environ.get(
        "SLURM_CPUS_PER_TASK"
    ):  # torchrun sets one thread, whatever the machine
        return int(cores)
    on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(num_cores(), (os.cpu_count() or 1) // on_machine))


def complete(config: RunConfig, data: Data) -> RunConfig:
    """Writes into the config what it left to the data, so that a record holds the values in force."""
    settings = config.data
    size = settings.image_size or data.train.image_size
    if size is None:
        raise UserError(
            f"data.image_size must be given: the images of '{settings.source}' differ in size"
        )
    mean = settings.mean or data.normalisation[0]
    std = settings.std or data.normalisation[1]
    filled = DataConfig.model_validate(
        settings.model_dump()
        | {
            "source": data.facts.source,
            "image_size": size,
            "in_chans": data.train.num_channels,
            "mean": _per_channel(mean, "mean", data),
            "std": _per_channel(std, "std", data),
        }
    )
    num_images = data.train.num_images
    return fit_batches(validated(config.model_dump() | {"data": filled.model_dump()}), num_images)


def warn_of_batches(
    config: RunConfig, fitted: RunConfig, names: Collection[str], num_images: int
) -> None:
    """Warns of the named trainings whose batches `complete` made smaller than the config's."""
    for name in names:
        batch_size, used_batch_size = (
            getattr(settings, name).batch_size for settings in (config, fitted)
        )
        if used_batch_size != batch_size:
            _logger.warning(
                "%s.batch_size=%d is more than the %d training images; %d, an even number of them, is used",
                name, batch_size, num_images, used_batch_size,
            )  # fmt: skip


def _per_channel(values: tuple[float, ...], field: str, data: Data) -> tuple[float, ...]:
    if len(values) not in (1, data.train.num_channels):
        raise UserError(
            f"data.{field} has {len(values)} values, the images have "
            f"{data.train.num_channels} channels"
        )
    return values * (data.train.num_channels if len(values) == 1 else 1)
