"""Predictions of a run's model: target and prediction on a few images, under the same masks for every target.

`mim_bench.evaluate.picture` draws them.

Legend: N images, C channels, H W image, k a whole number, L patches (row-major grid).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from mim_bench import rng
from mim_bench.config.resolve import validated
from mim_bench.config.run import RunConfig
from mim_bench.data.run_data import Data, open_data
from mim_bench.errors import UserError
from mim_bench.evaluate import picture
from mim_bench.evaluate.context import clean_crop
from mim_bench.model import masking
from mim_bench.model.mae import MaskedAutoencoder, compute_values
from mim_bench.records.run_folder import read_config
from mim_bench.target import Target
from mim_bench.targets.build import geometry as geometry_of
from mim_bench.train import loop, pretrain
from mim_bench.train.fit import fitted_target

_NUM_PICTURES = 8


@dataclass(frozen=True)
class Sample:
    """Target and prediction of a run on a few evaluated images."""

    images: Tensor
    """(N, C, H, W) in [0, 1]."""
    mask: Tensor
    """(N, L) bool, True = hidden."""
    target: Tensor
    """(N, 3, k*H, k*W) in [0, 1]."""
    prediction: Tensor
    """(N, 3, k*H, k*W) in [0, 1]."""
    ground_truth: bool
    """True if statistics of the true images were used to draw."""


def sample(
    config: RunConfig, data: Data, target: Target, model: MaskedAutoencoder, device: torch.device
) -> Sample:
    """The same images, under the same masks, for every target of a seed."""
    images, index = _images(config, data, device)
    return sample_of(images, index, config, target, model, device)


def _images(config: RunConfig, data: Data, device: torch.device) -> tuple[Tensor, Tensor]:
    """Evaluated images (N, C, H, W) in [0, 1], the same for every run, and their indices (N,)."""
    split = data.evaluate
    index = rng.permutation(split.num_images, seed=0, epoch=0, stream="picture")[:_NUM_PICTURES]
    images = next(iter(split.batches([index], clean_crop(config), device=device)))[0]
    return images.float() / 255, index


def sample_of(
    images: Tensor,
    index: Tensor,
    config: RunConfig,
    target: Target,
    model: MaskedAutoencoder,
    device: torch.device,
) -> Sample:
    """The sample of given images (N, C, H, W) in [0, 1]; their indices (N,) choose their masks."""
    noise = masking.MaskSampler(config.mask, model.geometry.grid).noise(
        index.to(device), seed=config.seed, epoch=0
    )
    model.eval()
    with torch.no_grad(), loop.autocast(device, config.runtime):
        _, output, mask = model(images, target, noise)
        values = target.picture(compute_values(target, images), images)
        prediction = target.picture(target.decode(output.float()), images)
    return Sample(
        images.cpu(),
        mask.cpu(),
        values.float().cpu(),
        prediction.float().cpu(),
        target.picture_uses_ground_truth,
    )


def draw_picture(path: Path, config: RunConfig, sample: Sample) -> None:
    """`picture.png`: image, masked image, target, prediction, under the run's name."""
    picture.write(sample_figure(config, sample, config.run_id), path)


def sample_figure(config: RunConfig, sample: Sample, title: str) -> Figure:
    """Image, masked image, target and prediction of a sample."""
    return picture.grid_figure(
        target_name=config.target.name,
        images=sample.images,
        mask=sample.mask,
        target=sample.target,
        prediction=sample.prediction,
        geometry=geometry_of(config),
        ground_truth=sample.ground_truth,
        title=title,
    )


def reopen(
    folder: Path, device: torch.device, ratios: Sequence[float] = ()
) -> tuple[RunConfig, list[Sample]]:
    """A finished run's samples, taken again from its weights: one of its own mask ratio, then one of each ratio.

    Raises:
        UserError: the run is not finished, or its weights do not match.
    """
    config = read_config(folder)
    data = open_data(config, device)
    target = fitted_target(config, data, folder.parent, device).target
    images, index = _images(config, data, device)
    configs = [config, *(with_ratio(config, ratio) for ratio in ratios)]
    return config, samples_of(images, index, configs, folder, target, device)


def samples_of(
    images: Tensor,
    index: Tensor,
    configs: Sequence[RunConfig],
    folder: Path,
    target: Target,
    device: torch.device,
) -> list[Sample]:
    """`sample_of` the finished run in `folder`, for each of its config's mask ratios."""
    samples = []
    for config in configs:
        model = pretrain.build_model(config, target.dim).to(device)
        pretrain.load_weights(folder, model, target)
        samples.append(sample_of(images, index, config, target, model, device))
    return samples


def possible_ratios(config: RunConfig) -> list[float]:
    """Tenths that can be hidden, each of another number of patches: all of a fine grid, few of a coarse one."""
    ratios: dict[int, float] = {}
    for ratio in (k / 10 for k in range(1, 10)):
        try:
            mask = with_ratio(config, ratio).mask
            ratios.setdefault(
                masking.MaskSampler(mask, geometry_of(config).grid).num_visible, ratio
            )
        except UserError:
            continue
    return list(ratios.values())


def with_ratio(config: RunConfig, ratio: float) -> RunConfig:
    """The config with another mask ratio. Raises UserError where it leaves nothing to see or to predict."""
    content = config.model_dump()
    content["mask"] |= {"ratio": ratio}
    return validated(content)
