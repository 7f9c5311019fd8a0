"""Trainings of a run, and the check that their batches can be split over several processes."""

from collections.abc import Mapping, Sequence

from mim_bench.config.evaluation import FinetuneConfig
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.resolve import validated
from mim_bench.config.run import RunConfig
from mim_bench.config.schedule import ScheduleConfig
from mim_bench.errors import UserError


def needs_pretraining(config: RunConfig) -> bool:
    """False if no pre-trained weight enters any of the protocols, such as `scratch`."""
    names = config.evaluate.protocols
    return not names or any(PROTOCOLS[name].needs_encoder for name in names)


def lr_lines(config: RunConfig) -> Sequence[str]:
    """`blr -> lr` of every training that the run does, for people."""
    return [
        f"{name}: blr {section.blr:g} x {section.batch_size}/256 -> lr {section.lr:g}"
        + (", never reached in this warm-up" * (section.warmup_epochs >= section.epochs > 0))
        for name, section in trainings(config).items()
    ]


def trainings(config: RunConfig) -> dict[str, ScheduleConfig]:
    """Every training that the run does, by the name of its section."""
    sections: dict[str, ScheduleConfig] = {
        "pretrain": config.pretrain,
        "linear": config.linear,
        "attentive": config.attentive,
        "finetune": config.finetune,
        "scratch": config.scratch,
    }
    used_sections = {
        section for name in config.evaluate.protocols for section in PROTOCOLS[name].sections
    }
    if needs_pretraining(config):
        used_sections.add("pretrain")
    if config.linear.solver != "lars":
        used_sections.discard("linear")
    return {name: section for name, section in sections.items() if name in used_sections}


def fit_batches(config: RunConfig, num_images: int) -> RunConfig:
    """The config with no batch larger than the training images that it is drawn from."""
    changes = {}
    for name in ("pretrain", "linear", "attentive", "finetune", "scratch"):
        section: ScheduleConfig = getattr(config, name)
        num_used = num_images - round(num_images * getattr(section, "holdout_fraction", 0.0))
        if section.batch_size > num_used:
            # mixup needs an even batch, and parts of equal size
            divisible_size = num_used - num_used % (2 * section.accumulation_steps)
            changes[name] = section.model_dump() | {"batch_size": divisible_size}
    return validated(config.model_dump() | changes) if changes else config


def check_local_batches(schedules: Mapping[str, ScheduleConfig], num_ranks: int) -> None:
    """Checks that every training's batch can be split over `num_ranks` processes, before the first one begins."""
    for name, section in schedules.items():
        if isinstance(section, FinetuneConfig) and section.erasing and num_ranks > 1:
            raise UserError(
                f"{name}.erasing={section.erasing}: its draws would depend on the number of processes "
                f"({num_ranks}); allowed: 0, or a single process"
            )
        parts = section.accumulation_steps * num_ranks
        # mixup pairs the images of a process
        mixes = isinstance(section, FinetuneConfig) and (section.mixup > 0 or section.cutmix > 0)
        divisor = 2 * parts if mixes else parts
        if section.batch_size % divisor:
            pairs = ", two by two for mixup," if mixes else ""
            raise UserError(
                f"{name}.batch_size={section.batch_size} cannot be split over {num_ranks} "
                f"process{'es' * (num_ranks != 1)}{pairs} with {name}.accumulation_steps="
                f"{section.accumulation_steps}; allowed: multiples of {divisor}"
            )
