"""Reconstruction of one's own images by a run's model, at any mask ratio.

The images are cropped as at evaluation; grey and colour become what the run was trained on.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mim_bench.config.run import RunConfig
from mim_bench.data.crop import EvalCrop
from mim_bench.data.folder import FolderSet
from mim_bench.data.run_data import open_data
from mim_bench.data.split import load_split
from mim_bench.errors import UserError
from mim_bench.evaluate.context import clean_crop
from mim_bench.evaluate.reconstruction import Sample, possible_ratios, samples_of, with_ratio
from mim_bench.records.run_folder import check, read_config
from mim_bench.targets.build import make_target
from mim_bench.train.fit import fitted_target

_MOST = 8
"""Columns of a picture."""


def reconstruct(
    folder: Path, files: Sequence[Path], ratios: Sequence[float] | None, device: torch.device
) -> tuple[RunConfig, list[Sample]]:
    """The run's config, and its target and prediction on image files, at each mask ratio.

    Args:
        folder: run folder.
        files: images that Pillow reads.
        ratios: hidden patches over all; without any the run's own, None: each tenth that can be hidden.

    Raises:
        UserError: no finished run, too many or unreadable images, a ratio that leaves nothing to see or to predict.
    """
    config = read_config(folder)
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder} has no model.safetensors: its pre-training is not finished")
    check(folder, "model.safetensors", "target.safetensors")
    ratios = possible_ratios(config) if ratios is None else ratios
    configs = [with_ratio(config, ratio) for ratio in ratios] or [config]
    target = make_target(config)
    if target.num_views > 1:
        raise UserError(f"{folder}: {config.target.name} hides nothing and predicts no patch")
    if target.needs_fit:  # what it was fitted to is looked up by the data
        target = fitted_target(config, open_data(config, device), folder.parent, device).target
    images = read_images(files, clean_crop(config), config.data.in_chans, device).float() / 255
    index = torch.arange(len(files))
    return config, samples_of(images, index, configs, folder, target.to(device), device)


def read_images(
    files: Sequence[Path], crop: EvalCrop, num_channels: int | None, device: torch.device
) -> Tensor:
    """Image files as (N, C, H, W) uint8; UserError for none, too many, or one that cannot be read."""
    if not 1 <= len(files) <= _MOST:
        raise UserError(f"images: {len(files)} files; allowed: 1 to {_MOST}")
    images = FolderSet(Path(), [str(path) for path in files], None)
    images.num_channels = num_channels
    split = load_split(images, device=device, name="images")
    return next(iter(split.batches([torch.arange(len(files))], crop, device=device)))[0]
