"""Fitting a target to the training images, once for all runs that need the same fit.

The fitted state depends on the target block, the images, their crops and the run's seed: each seed of a table
gets a tokenizer of its own, so that intervals over seeds hold what it varies by. It is kept in
`<out>/fits/<key>.safetensors`; a lock lets two runs that want it at the same time share one fit.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock  # the cross-platform lock that torch itself depends on
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from mim_bench import rng
from mim_bench.config.run import RunConfig, digest
from mim_bench.data.run_data import Data
from mim_bench.errors import UserError
from mim_bench.records.run_folder import fit_parts, fit_path
from mim_bench.target import Target
from mim_bench.targets.build import make_target
from mim_bench.train import checkpoint
from mim_bench.train.pretrain import crop

_BATCH_SIZE = 128


@dataclass(frozen=True)
class Fitted:
    """A target ready for use."""

    target: Target
    key: str | None
    """Hash of all that the fitted state depends on; unset if there was nothing to fit."""
    values: dict[str, float]
    """Values that the fit reports, such as codebook use."""


class _Images:
    """Every pass yields each training image once, cropped as in pre-training, in floats."""

    def __init__(self, config: RunConfig, data: Data, device: torch.device) -> None:
        self.num_images = data.train.num_images
        self.batch_size = int(config.target.params.get("fit_batch_size", _BATCH_SIZE))
        self.config, self.data, self.device = config, data, device
        self.passes = 0

    def __iter__(self) -> Iterator[Tensor]:
        epoch, self.passes = self.passes, self.passes + 1
        order = rng.permutation(
            self.num_images, seed=self.config.seed, epoch=epoch, stream="fit order"
        )
        batches = self.data.train.batches(
            list(order.split(self.batch_size)),
            crop(self.config),
            seed=self.config.seed,
            epoch=epoch,
            device=self.device,
            num_workers=self.data.num_workers,
        )
        for images, _ in batches:
            yield images.float() / 255


class _FlopCount(TorchDispatchMode):
    """FLOPs of all that runs inside; torch's own counter keeps every step's modules alive: 22 GB in one fit."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._overloadpacket is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            # torch's registry has no entry for it
            self.total += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif (flops := flop_registry.get(func._overloadpacket)) is not None:
            self.total += flops(*args, **kwargs, out_val=out)
        return out


def fit_key(config: RunConfig, data: Data) -> str:
    """Hash of the target block, the data, the crops and the seed."""
    return digest([*fit_parts(config), data.facts.fingerprint])


def _read_fit(path: Path, target: Target) -> dict[str, float]:
    try:
        tensors, header = checkpoint.load_tensors(path)
        checkpoint.load_exactly(target, tensors, str(path))
        return json.loads(header["figures"])
    except (UserError, KeyError, ValueError) as error:
        raise UserError(f"{error}; delete {path} to fit again") from None


def fitted_target(config: RunConfig, data: Data, out: Path, device: torch.device) -> Fitted:
    """The run's target, fitted now or taken from the cache.

    Raises:
        UserError: the fit is not worth using (a collapsed codebook, say).
    """
    target = make_target(config).to(device)
    if not target.needs_fit:
        return Fitted(target, None, {})
    key = fit_key(config, data)
    path = fit_path(out, config, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.is_file():
            values = _read_fit(path, target)
        else:
            with _FlopCount() as count:
                values = target.fit(_Images(config, data, device), seed=config.seed)
            values["fit_flops"] = float(count.total)
            header = {"key": key, "figures": json.dumps(values)}
            checkpoint.save_tensors(path, target.state_dict(), header)
    return Fitted(target, key, values)
