"""The device that a process trains on, and what a record says of it."""

import os
import platform
from pathlib import Path

import torch

from mim_bench.config.run import RunConfig
from mim_bench.errors import UserError
from mim_bench.records.provenance import Device
from mim_bench.targets.build import geometry
from mim_bench.train import distributed
from mim_bench.train.backend import precision


def choose_device(name: str) -> torch.device:
    """`auto` -> cuda, else mps, else cpu; of several GPUs that of this process."""
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = next(device_type for device_type in ("cuda", "mps", "cpu") if available[device_type])
    if not available.get(name):
        usable = ", ".join(
            device_type for device_type, is_available in available.items() if is_available
        )
        raise UserError(f"runtime.device={name}: this machine has none; allowed: auto, {usable}")
    if name == "cuda" and distributed.size() > 1:
        local_rank, num_seen = distributed.local_rank(), torch.cuda.device_count()
        if local_rank >= num_seen:
            raise UserError(
                f"runtime.device=cuda: process {local_rank} of this machine (from 0) sees {num_seen} "
                f"GPU{'s' * (num_seen != 1)}; each process takes one of its own and must see all of them"
            )
        device = torch.device(name, local_rank)
        torch.cuda.set_device(device)
        return device
    return torch.device(name)


def check_memory(config: RunConfig, device: torch.device) -> None:
    """Refuses a training whose least need for memory is above all that the machine has.

    Counted are float32 weights and AdamW's two moments, with all gradients when the optimiser steps, or with the
    values that the backward pass cannot do without when it begins: of each token in each block 8 times its width.
    What is really used is more.
    """
    model, patches = config.model, geometry(config).num_patches
    visible = patches if model.mask_tokens != "decoder" else int(patches * (1 - config.mask.ratio))
    weights = values = 0.0
    for width, depth, tokens in (
        (model.embed_dim, model.depth, 1 + visible),
        (model.decoder_dim, model.decoder_depth, 1 + patches),
    ):
        weights += depth * width**2 * (4 + 2 * model.mlp_ratio)
        values += 8 * depth * width * tokens
    local = config.pretrain.batch_size / config.pretrain.accumulation_steps / distributed.size()
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    half = 0.5 if precision(device, config.runtime) == "bfloat16" else 1.0
    if max(16 * weights, 12 * weights + 4 * half * local * values) > total:
        raise UserError(
            f"model.embed_dim={model.embed_dim}, model.depth={model.depth}, pretrain.batch_size="
            f"{config.pretrain.batch_size}: training needs at least {16 * weights / 1e9:,.1f} GB for weights and "
            f"{4 * half * local * values / 1e9:,.1f} GB for a batch, the {device.type} has {total / 1e9:,.1f} GB; "
            "use a smaller model or batch, or more pretrain.accumulation_steps"
        )


def device_facts(device: torch.device) -> Device:
    """The hardware, as a record states it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = _processor()
    threads = torch.get_num_threads()
    return Device(kind=device.type, name=name, count=distributed.size(), cpu_threads=threads)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
