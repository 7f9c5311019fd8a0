"""Pre-training: the masked model, its target, and the same crops and masks for every target of a seed."""

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mim_bench import rng
from mim_bench.config.run import RunConfig
from mim_bench.data.color_jitter import ColorJitter
from mim_bench.data.crop import Crop
from mim_bench.data.run_data import Data
from mim_bench.errors import UserError
from mim_bench.model import masking
from mim_bench.model.mae import MaskedAutoencoder, compute_values
from mim_bench.target import Target
from mim_bench.targets.build import geometry
from mim_bench.targets.check import check_target, check_values
from mim_bench.train import checkpoint, distributed, loop
from mim_bench.train.backend import accelerate
from mim_bench.train.distributed import full_tensor, shard, sharded_modules
from mim_bench.train.drawn_ahead import DrawnAhead
from mim_bench.train.log import read_log
from mim_bench.train.loss_watch import LossNotFinite
from mim_bench.train.optimizer import adamw, decay_groups
from mim_bench.train.training import Outcome, Training

_CHECKED_IMAGES = 8
_HASHED_IMAGES = 512  # enough to prove equal crops and masks, cheap even at ImageNet's size


@dataclass
class PretrainTask:
    """Masked image modelling, as the loop sees it."""

    model: MaskedAutoencoder
    target: Target
    sampler: masking.MaskSampler | DrawnAhead
    seed: int
    whole_model: MaskedAutoencoder | None = None
    """Whole copy of a model whose weights are split over ranks, for the target to follow."""

    @property
    def modules_to_save(self) -> dict[str, nn.Module]:
        """The model, and the target if it learns along."""
        modules: dict[str, nn.Module] = {"model": self.model}
        return modules | {"target": self.target} if self.target.follows_student else modules

    @property
    def is_recordable(self) -> bool:
        """True if steps may be replayed: not where a target changes from step to step."""
        return not self.target.follows_student

    def draw(self, index: Tensor, *, epoch: int, device: torch.device) -> Tensor:
        """Sample indices (B,) -> the noise of their masks (B, L)."""
        return self.sampler.noise(index, seed=self.seed, epoch=epoch, device=device)

    def loss_of(self, inputs: Tensor, drawn: Tensor) -> Tensor:
        """8-bit images (B, C, H, W) and noise (B, L) -> mean loss over hidden patches; of V views (B, V, C, H, W)
        the loss between them."""
        images = inputs.float() / 255
        if self.target.num_views > 1:
            return self.model.compare(images.unbind(1), self.target)
        return self.model(images, self.target, drawn, hidden_only=True)[0]

    def loss(self, inputs: Tensor, index: Tensor, *, epoch: int, step: int) -> Tensor:
        """8-bit images (B, C, H, W) or views (B, V, C, H, W) -> mean loss."""
        return self.loss_of(inputs, self.draw(index, epoch=epoch, device=inputs.device))

    def after_step(self, step: int, num_steps: int) -> None:
        """Lets a teacher follow."""
        if self.whole_model is not None:
            distributed.copy_whole(self.model, self.whole_model)
        self.target.after_step(self.whole_model or self.model, step, num_steps)


def crop(config: RunConfig) -> Crop:
    """The crops that pre-training sees."""
    augment = config.augment
    return Crop(
        size=geometry(config).image_size,
        mode=augment.crop,
        scale=augment.crop_scale,
        ratio=augment.crop_ratio,
        flip=augment.flip,
        crop_fraction=config.data.crop_fraction,
    )


def views(
    config: RunConfig,
    data: Data,
    index_batches: Sequence[Tensor],
    epoch: int,
    device: torch.device,
    num_workers: int,
    number: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of the training images at each (B,) of indices in pre-training, and those indices.

    `number`: which view, each of its own random stream; all targets share the first.
    """
    jitter = config.augment.color_jitter
    seed = rng.integer(seed=config.seed, stream="view", index=number) if number else config.seed
    return data.train.batches(
        index_batches,
        crop(config),
        seed=seed,
        epoch=epoch,
        device=device,
        num_workers=num_workers,
        per_image=ColorJitter(jitter, seed=seed, epoch=epoch) if jitter else None,
    )


def build_model(config: RunConfig, target_dim: int) -> MaskedAutoencoder:
    """The run's model at its initial weights."""
    sampler = masking.MaskSampler(config.mask, geometry(config).grid)
    return MaskedAutoencoder(
        config.model,
        geometry(config),
        target_dim,
        num_visible=sampler.num_visible,
        seed=config.seed,
    )


def make_training(
    config: RunConfig, num_images: int, folder: Path, device: torch.device
) -> Training:
    """The pre-training of a run, for the loop."""
    return Training(
        name="pretrain",
        key=config.hash,
        folder=folder,
        schedule=config.pretrain,
        seed=config.seed,
        num_images=num_images,
        runtime=config.runtime,
        device=device,
    )


def pretrain(
    config: RunConfig,
    data: Data,
    target: Target,
    folder: Path,
    device: torch.device,
    report: loop.Report | None = None,
) -> tuple[MaskedAutoencoder, Outcome]:
    """Trains to the end, or goes on where the folder's checkpoint stands; saves model and encoder."""
    target.requires_grad_(False)
    model = build_model(config, target.dim).to(device)
    target.begin(model)
    sampler = _sampler(config, device)
    is_split = config.runtime.shard and distributed.size() > 1
    whole_model = copy.deepcopy(model) if is_split and target.follows_student else None
    accelerate(model, device, config.runtime)
    shard(model, config.runtime)
    task = PretrainTask(model, target, sampler, config.seed, whole_model)
    optimizer = adamw(
        decay_groups(model.named_parameters(), config.pretrain.weight_decay), config.pretrain
    )

    def batches(index_batches: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        if isinstance(sampler, DrawnAhead):
            sampler.expect(index_batches, seed=config.seed, epoch=epoch)
        own = (config, data, index_batches, epoch, device, data.num_workers)
        if target.num_views == 1:
            return views(*own)
        view_streams = (views(*own, number=number) for number in range(target.num_views))
        return (
            (torch.stack([v for v, _ in view_batches], dim=1), view_batches[0][1])
            for view_batches in zip(*view_streams, strict=True)
        )

    training = make_training(config, data.train.num_images, folder, device)
    first_index = [training.epoch_batches(0)[0][:_CHECKED_IMAGES]]
    first = next(views(config, data, first_index, 0, device, data.num_workers))[0].float() / 255
    check_target(target.eval(), first)  # in training mode it may learn from what it sees
    target.train()
    try:
        outcome = loop.train(training, task, optimizer, batches, report)
    except LossNotFinite as error:
        index = error.index.split(_CHECKED_IMAGES)
        _blame_target(target, views(config, data, index, error.epoch, device, data.num_workers))
        raise
    target.eval()
    save_weights(folder, model, target, config)
    if sharded_modules([model]):  # evaluation needs it whole
        model = build_model(config, target.dim).to(device)
        load_weights(folder, model)
    return model, outcome


def _sampler(config: RunConfig, device: torch.device) -> masking.MaskSampler | DrawnAhead:
    """The run's masks, drawn ahead where the host draws them for another device."""
    sampler = masking.MaskSampler(config.mask, geometry(config).grid)
    is_ahead = config.mask.sampling == "block" and device.type == "cuda"
    return DrawnAhead(sampler) if is_ahead else sampler


def _blame_target(target: Target, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Raises UserError if the values of the images are what is not finite, rather than the prediction."""
    for images, index in batches:
        try:
            check_values(target, compute_values(target, images.float() / 255), len(images))
        except UserError as cause:
            raise UserError(f"training images {index.tolist()}: {cause}") from None


def save_weights(folder: Path, model: MaskedAutoencoder, target: Target, config: RunConfig) -> None:
    """Rank 0 writes `encoder.safetensors` with timm's names, `model.safetensors` with all of the model and, of
    a target that followed the student, `target.safetensors`.
    """
    header = {"run_hash": config.hash, "model": config.model.model_dump_json()}
    tensors = {name: full_tensor(tensor) for name, tensor in model.state_dict().items()}
    encoder = {
        name.removeprefix("encoder."): tensor
        for name, tensor in tensors.items()
        if name.startswith("encoder.")
    }

    def save() -> None:
        checkpoint.save_tensors(folder / "encoder.safetensors", encoder, header)
        checkpoint.save_tensors(folder / "model.safetensors", tensors, header)
        if target.follows_student:
            checkpoint.save_tensors(folder / "target.safetensors", target.state_dict(), header)

    distributed.on_main(save)


def load_weights(folder: Path, model: MaskedAutoencoder, target: Target | None = None) -> None:
    """The finished model of a run folder and its target's state; every tensor must match."""
    if target is not None:
        target.begin(model)
    modules: dict[str, nn.Module] = {"model": model}
    if target is not None and target.follows_student:
        modules["target"] = target
    for name, module in modules.items():
        path = folder / f"{name}.safetensors"
        checkpoint.load_exactly(module, checkpoint.load_tensors(path)[0], str(path))


def epoch_losses(folder: Path) -> tuple[tuple[int, float], ...]:
    """Epoch, from 1, and mean loss over its log lines, of a run folder; epochs without one are left out."""
    path = folder / "pretrain.jsonl"
    losses: dict[int, list[float]] = {}
    for line in read_log(path) if path.exists() else []:
        losses.setdefault(math.ceil(line["epoch"]), []).append(line["loss"])
    return tuple((epoch, sum(part) / len(part)) for epoch, part in sorted(losses.items()))


def first_batches_hash(config: RunConfig, data: Data) -> str:
    """sha256 over crops and masks of the first images of epoch 0; the target plays no part."""
    order = rng.permutation(data.train.num_images, seed=config.seed, epoch=0)[:_HASHED_IMAGES]
    sampler = masking.MaskSampler(config.mask, geometry(config).grid)
    digest = hashlib.sha256()
    batches = views(config, data, order.split(128), 0, torch.device("cpu"), 0)
    for images, index in batches:
        noise = sampler.noise(index, seed=config.seed, epoch=0)
        mask = masking.split(noise, sampler.num_visible)[1]
        digest.update(images.numpy().tobytes())
        digest.update(mask.numpy().tobytes())
    return digest.hexdigest()
