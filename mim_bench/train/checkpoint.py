"""Checkpoints of a training: one safetensors file a checkpoint, written whole or not at all.

A file holds weights, the target's state where it follows the student, and the optimiser's state, each
under a prefix; its header says which training it belongs to and at which step it was written. No
random state is needed (see `mim_bench.rng`), and nothing is unpickled on loading.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mim_bench.errors import UserError
from mim_bench.files import check_regular, replacing
from mim_bench.train import distributed
from mim_bench.train.distributed import full_tensor, shard_like

_logger = logging.getLogger(__name__)
SCHEMA = "mim_bench.checkpoint.1"
_KEEP = 2
_OURS = "mim_bench"
"""Key of the metadata of our files, as JSON."""
_HASH = "sha256"
"""Key in them."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file."""

    tensors: dict[str, Tensor]
    step: int
    """Optimiser steps done."""
    seconds: float
    """Wall time of the training so far, in s, over all its restarts."""
    loss_sum: float = 0.0
    """Sum of the mean losses of the steps since the last line of the log."""
    loss_steps: int = 0
    """Number of those steps."""
    path: Path | None = None
    """File that the checkpoint was read from."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file under a temporary name, then replaces; it holds a hash of all it says."""
    # safetensors refuses tensors that share memory or have holes
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # one entry: safetensors writes several in another order each time, and files of equal runs would differ
    content = json.dumps({**metadata, _HASH: _hash(contiguous, metadata)}, sort_keys=True)
    with replacing(path, hint="free space or choose another --out") as temporary:
        try:
            save_file(contiguous, temporary, {_OURS: content})
        except SafetensorError as error:  # so does the library report a full disk
            raise OSError(str(error)) from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; one of ours that has changed since is refused."""
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            header = json.loads(header[_OURS]) if _OURS in header else header
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # out of a damaged file comes anything
        raise UserError(f"{path} cannot be read as safetensors: {error}") from None
    checksum = header.pop(_HASH, None)
    if checksum not in (None, _hash(tensors, header)):
        raise UserError(f"{path} is damaged: its content is not what was written")
    return tensors, header


def _hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """sha256 over metadata, names, types, shapes and values."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.safetensors"


def save(folder: Path, training: str, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint and keeps the newest two.

    Args:
        training: what it belongs to (a hash); a checkpoint of another training is not resumed from.
    """
    header = {
        "schema": SCHEMA,
        "training": training,
        "step": str(checkpoint.step),
        "seconds": json.dumps(checkpoint.seconds),
        "loss": json.dumps([checkpoint.loss_sum, checkpoint.loss_steps]),
    }
    path = _path(folder, checkpoint.step)
    save_tensors(path, checkpoint.tensors, header)
    files = _files(folder)
    position = files.index(path)
    # later ones were refused, else training would have gone on from there
    for old in files[: max(0, position + 1 - _KEEP)] + files[position + 1 :]:
        old.unlink()
    return path


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))


def load_newest(folder: Path, training: str) -> Checkpoint | None:
    """The newest checkpoint that is whole and belongs to this training; refused ones are named."""
    for path in reversed(_files(folder)):
        try:
            checkpoint = load(path, training)
        except UserError as error:
            _logger.warning("refused checkpoint: %s; trying an older one", error)
            continue
        if checkpoint is not None:
            return checkpoint
        _logger.warning("refused checkpoint %s: it belongs to another training", path)
    return None


def load_newest_on_all(folder: Path, training: str) -> Checkpoint | None:
    """The newest whole checkpoint that rank 0 finds, read by every rank."""
    checkpoints: list[Checkpoint | None] = []

    def find() -> Path | None:
        checkpoints.append(load_newest(folder, training))
        return checkpoints[0] and checkpoints[0].path

    path = distributed.on_main(find)
    if checkpoints or path is None:
        return checkpoints[0] if checkpoints else None
    return load(path, training)


def load(path: Path, training: str) -> Checkpoint | None:
    """A checkpoint by its path; None if it belongs to another training."""
    tensors, header = load_tensors(path)
    if header.get("schema") != SCHEMA or header.get("training") != training:
        return None
    try:
        loss_sum, loss_steps = json.loads(header.get("loss", "[0.0, 0]"))
        step, seconds = int(header["step"]), float(header["seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no whole checkpoint: {error}") from None
    return Checkpoint(tensors, step, seconds, loss_sum, loss_steps, path)


def pack(
    modules: Mapping[str, torch.nn.Module], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """All tensors that the next step depends on, under `module/...` and `optimizer/...` names.

    The optimiser's state is stored by the place of a parameter in its groups. Every rank calls it; what is
    split over ranks is whole on rank 0.
    """
    tensors = {
        f"{prefix}/{name}": full_tensor(tensor)
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{index}/{key}"] = full_tensor(torch.as_tensor(value))
    return tensors


def unpack(
    tensors: Mapping[str, Tensor],
    modules: Mapping[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
) -> None:
    """The inverse of `pack`, in place; every tensor must match, and every rank has them all."""
    for prefix, module in modules.items():
        stripped = {
            name.removeprefix(f"{prefix}/"): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{prefix}/")
        }
        load_exactly(module, stripped, prefix)
    parameters = _parameters(optimizer)
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition("/")
        if prefix == "optimizer":
            index_text, _, key = rest.partition("/")
            parameter = parameters[int(index_text)]
            # AdamW keeps its step count on the CPU unless it is fused
            device = parameter.device if tensor.ndim or _is_fused(optimizer) else tensor.device
            value = tensor.to(device)
            optimizer.state[parameter][key] = shard_like(parameter, value) if value.ndim else value


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.defaults.get("fused"))


def load_exactly(module: torch.nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Loads weights of which every name and shape must match."""
    expected = module.state_dict()
    matched = [
        key for key in expected if key in tensors and expected[key].shape == tensors[key].shape
    ]
    missing = [key for key in expected if key not in matched]
    unexpected = [key for key in tensors if key not in matched]
    if missing or unexpected:
        first = (missing or unexpected)[0]
        found_shape = tuple(tensors[first].shape) if first in tensors else "absent"
        expected_shape = tuple(expected[first].shape) if first in expected else "absent"
        raise UserError(
            f"{name}: weights of another architecture: {len(matched)} tensors matched, "
            f"{len(missing)} missing, {len(unexpected)} unexpected; first: {first} is {found_shape}, "
            f"wanted {expected_shape}"
        )
    module.load_state_dict({key: shard_like(expected[key], tensors[key]) for key in expected})
