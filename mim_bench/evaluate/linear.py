"""Linear probe on frozen features.

- `linear.solver=lbfgs`: logistic regression on features of the clean images, at its minimum.
- `lars`: as MAE does it, BatchNorm without affine, a linear layer, LARS; appendix A.1, Table 10; numbers in
  tests/golden (probe.npz, lars.npz). All four readouts are probed in one training; their heads share nothing.
  With `linear.augment` off the features of the clean images are taken once and kept. How much the loss still
  falls at the end is in the record.

Legend: B batch, R readouts, D width, K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim_bench import rng
from mim_bench.data.crop import Crop
from mim_bench.errors import UserError
from mim_bench.evaluate.context import EvalContext, ProtocolResult, from_memory
from mim_bench.evaluate.logistic import standardised, tuned_logistic_regression
from mim_bench.targets.build import geometry
from mim_bench.train import distributed, loop
from mim_bench.train.log import convergence
from mim_bench.train.optimizer import LARS


class Probes(nn.Module):
    """One MAE probe for each readout."""

    def __init__(self, dim: int, num_classes: int, num_readouts: int, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.integer(seed=seed, stream="init probe"))
            self.heads = nn.ModuleList(probe(dim, num_classes) for _ in range(num_readouts))

    def forward(self, features: Tensor) -> Tensor:
        """(B, R, D) -> logits (R, B, K)."""
        return torch.stack(
            [head(features[:, readout_index]) for readout_index, head in enumerate(self.heads)]
        )


def probe(dim: int, num_classes: int) -> nn.Sequential:
    """BatchNorm without affine (eps 1e-6) and a linear layer with weights of std 0.01."""
    linear = nn.Linear(dim, num_classes)
    norm = nn.BatchNorm1d if distributed.size() == 1 else SharedBatchNorm
    nn.init.trunc_normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(norm(dim, affine=False, eps=1e-6), linear)


class SharedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the batch of all ranks, for inputs that need no gradient.

    torch's SyncBatchNorm works on GPUs only.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(b, D) -> (b, D)."""
        if not self.training:
            return super().forward(input)
        num = len(input) * distributed.size()
        mean = distributed.all_reduce_sum(input.sum(0)) / num
        variance = distributed.all_reduce_sum((input - mean).square().sum(0)) / num
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * num / (num - 1), self.momentum)
        self.num_batches_tracked += 1
        return (input - mean) * torch.rsqrt(variance + self.eps)


@dataclass
class ProbeTask:
    """Probing, as the loop sees it; inputs are features, or 8-bit images to be encoded first."""

    probes: Probes
    labels: Tensor
    context: EvalContext | None

    @property
    def modules_to_save(self) -> dict[str, nn.Module]:
        """The heads; the encoder stays as it is."""
        return {"probes": self.probes}

    def loss(self, inputs: Tensor, index: Tensor, *, epoch: int, step: int) -> Tensor:
        """Sum over readouts of the cross-entropy; each head gets the gradient it would get alone."""
        features = inputs if self.context is None else self.context.features.encode(inputs)
        with torch.autocast(features.device.type, enabled=False):
            logits = self.probes(features)
        truth = self.labels[index.to(self.labels.device, non_blocking=True)]
        return F.cross_entropy(
            logits.flatten(0, 1), truth.repeat(len(logits)), reduction="sum"
        ) / len(truth)

    def after_step(self, step: int, num_steps: int) -> None:
        """Does nothing: no teacher follows a probe."""


def run(context: EvalContext) -> ProtocolResult:
    """Accuracy of every readout at the minimum, or at the last epoch."""
    return _solve(context) if context.config.linear.solver == "lbfgs" else _train(context)


def _solve(context: EvalContext) -> ProtocolResult:
    settings, data = context.config.linear, context.data
    labels, truth = context.labels(data.train), context.labels(context.test)
    correct, chosen = {}, []
    for readout in context.features.names:
        features = (context.features.of(split, readout) for split in (data.train, context.test))
        train_features, query = standardised(*features)
        solution = tuned_logistic_regression(
            train_features, labels, data.num_classes, settings.penalties, settings.tune_fraction
        )
        correct[readout] = (solution.logits(query).argmax(dim=1) == truth).cpu().numpy()
        state = "converged" if solution.is_converged else "NOT converged"
        chosen.append(f"{readout} c {solution.c:g}, {state} (gradient {solution.gradient:.0e})")
    return ProtocolResult(correct, ("linear: features of the clean images; " + "; ".join(chosen),))


def _train(context: EvalContext) -> ProtocolResult:
    config, data, device = context.config, context.data, context.device
    schedule, names = config.linear, context.features.names
    if joined := [name for name in names if name.endswith(("/cls+patch_mean", "/patches"))]:
        raise UserError(f"readout '{joined[0]}' is of another width: linear.solver=lbfgs takes it")
    probes = Probes(config.model.embed_dim, data.num_classes, len(names), seed=config.seed)
    probes.to(device)
    task = ProbeTask(probes, context.labels(data.train), context if schedule.augment else None)
    optimizer = LARS(probes.parameters(), schedule.lr, schedule.weight_decay, schedule.momentum)
    training = context.training("linear", schedule, data.train.num_images)
    loop.train(training, task, optimizer, _batches(context), context.report)

    probes.eval()
    with torch.no_grad():
        predictions = probes(context.features.clean(context.test)).argmax(dim=2)
    truth = context.labels(context.test)
    correct = {
        readout: (predictions[readout_index] == truth).cpu().numpy()
        for readout_index, readout in enumerate(names)
    }
    notes = () if schedule.augment else ("linear: features of the clean images, cached",)
    return ProtocolResult(correct, (*notes, *convergence(training.log, "linear")))


def _batches(context: EvalContext) -> loop.Batches:
    """Cached features of the clean images, or freshly cropped images."""
    data, config = context.data, context.config
    if not config.linear.augment:
        return from_memory(context.features.clean(data.train))

    crop = Crop(size=geometry(config).image_size, scale=config.linear.crop_scale)

    def cropped(index_batches: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return data.train.batches(
            index_batches,
            crop,
            seed=config.seed,
            epoch=epoch,
            device=context.device,
            num_workers=data.num_workers,
        )

    return cropped
