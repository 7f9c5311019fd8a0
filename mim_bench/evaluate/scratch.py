"""Supervised training from random weights: what a run has to beat with the same labels (rule 11 of the design).

MAE (He et al. 2022), appendix A.2, Table 11: a recipe of its own, without layer decay and with more weight decay. Two
lengths: `scratch` has that of its section, which presets but `imagenet` set to the images that pre-training and
fine-tuning see together; `scratch_flops` as many epochs as their FLOPs, without a fit's, pay for, rounded, at least
one. Without a decoder and a target, but with every patch in the encoder, an image costs several times as much as in
pre-training.

Deliberate difference: no moving average of the weights, which MAE takes for its own rows.
"""

from dataclasses import replace

from mim_bench.config.evaluation import ScratchConfig
from mim_bench.config.run import RunConfig
from mim_bench.evaluate import finetune, flops
from mim_bench.evaluate.context import EvalContext, ProtocolResult
from mim_bench.records.record import Metric
from mim_bench.targets.build import geometry


def run(context: EvalContext) -> ProtocolResult:
    """Trains from random weights for the section's own epochs."""
    return _train(context, "scratch", context.config.scratch)


def run_equal_flops(context: EvalContext) -> ProtocolResult:
    """Trains from random weights for the FLOPs of the run's pre-training and fine-tuning."""
    schedule = equal_flops(context.config, context.data.num_classes)
    result = _train(context, "scratch_flops", schedule)
    length = (
        f"scratch_flops: {schedule.epochs} epochs for the FLOPs of pre-training and fine-tuning"
    )
    return replace(result, notes=(length, *result.notes))


def _train(context: EvalContext, name: str, schedule: ScratchConfig) -> ProtocolResult:
    model = finetune.build_classifier(context, schedule, pretrained=False)
    result = finetune.train_classifier(context, model, name, schedule)
    config, data = context.config, context.data
    kept, _ = finetune.hold_out(data.train.num_images, schedule.holdout_fraction)
    num_steps = context.training(name, schedule, len(kept)).num_steps
    step_flops = flops.classifier(config.model, geometry(config), data.num_classes).step
    value = float(num_steps * schedule.batch_size * step_flops)
    spent = Metric(
        name="train_flops", readout="model", value=value, stderr=0.0, n=num_steps, higher_is_better=False,
    )  # fmt: skip
    return replace(result, metrics=(spent,))


def equal_flops(config: RunConfig, num_classes: int) -> ScratchConfig:
    """The recipe for as many epochs as a complete config's other trainings pay for, its warm-up in proportion."""
    settings = config.scratch
    supervised = flops.classifier(config.model, geometry(config), num_classes).step
    kept = 1 - settings.holdout_fraction
    paid = config.pretrain.epochs * flops.step(config) / supervised
    paid += config.finetune.epochs * (1 - config.finetune.holdout_fraction)
    epochs = max(1, round(paid / kept))
    changes = {"epochs": epochs, "warmup_epochs": settings.warmup_epochs * epochs / settings.epochs}
    return settings.model_copy(update=changes)
