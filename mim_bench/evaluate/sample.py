"""What a run asked for and answered, on the same few images under the same masks for every target."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mim_bench import rng
from mim_bench.config.run import RunConfig
from mim_bench.data.run_data import Data, open_data
from mim_bench.evaluate.context import Features
from mim_bench.evaluate.picture import draw_grid
from mim_bench.model import masking
from mim_bench.model.mae import MaskedAutoencoder
from mim_bench.records.run_folder import read_config
from mim_bench.target import Target
from mim_bench.targets.build import geometry
from mim_bench.train import loop, pretrain
from mim_bench.train.fit import fitted_target

_NUM_PICTURES = 8


@dataclass(frozen=True)
class Sample:
    """What a run asked for and answered on a few evaluated images; see `mim_bench.evaluate.picture`."""

    images: Tensor
    """(N, C, H, W) in [0, 1]."""
    mask: Tensor
    """(N, L) bool, True = hidden."""
    asked: Tensor
    """(N, 3, k*H, k*W) in [0, 1]."""
    answered: Tensor
    """(N, 3, k*H, k*W) in [0, 1]."""
    ground_truth: bool
    """True if statistics of the true images were used to draw."""


def sample(
    config: RunConfig, data: Data, target: Target, model: MaskedAutoencoder, device: torch.device
) -> Sample:
    """The same images, under the same masks, for every target of a seed."""
    split = data.evaluate
    index = rng.permutation(split.num_images, seed=0, epoch=0, stream="picture")[:_NUM_PICTURES]
    clean = Features(config, data, model.encoder, device).crop
    images = next(iter(split.batches([index], clean, device=device)))[0].float() / 255
    noise = masking.MaskSampler(config.mask, model.geometry.grid).noise(
        index.to(device), seed=config.seed, epoch=0
    )
    model.eval()
    with torch.no_grad(), loop.autocast(device, config.runtime):
        _, prediction, mask = model(images, target, noise)
        asked = target.picture(target(images), images)
        answered = target.picture(target.answer(prediction.float()), images)
    return Sample(
        images.cpu(),
        mask.cpu(),
        asked.float().cpu(),
        answered.float().cpu(),
        target.picture_uses_ground_truth,
    )


def draw_picture(path: Path, config: RunConfig, found: Sample) -> None:
    """`picture.png`: image, masked image, what was asked, what was answered."""
    draw_grid(
        path,
        target_name=config.target.name,
        images=found.images,
        mask=found.mask,
        asked=found.asked,
        answered=found.answered,
        geometry=geometry(config),
        ground_truth=found.ground_truth,
        title=config.run_id,
    )


def reopen(folder: Path, device: torch.device) -> tuple[RunConfig, Sample]:
    """A finished run's sample, taken again from its weights.

    Raises:
        UserError: the run is not finished, or its weights do not match.
    """
    config = read_config(folder)
    data = open_data(config, device)
    target = fitted_target(config, data, folder.parent, device).target
    model = pretrain.build_model(config, target.dim).to(device)
    pretrain.load_weights(folder, model)
    return config, sample(config, data, target, model, device)
