"""The device that a process trains on, and what a record says of it."""

import os
import platform
from pathlib import Path

import torch

from mim_bench.errors import UserError
from mim_bench.records.provenance import Device
from mim_bench.train import distributed


def choose_device(name: str) -> torch.device:
    """`auto` -> cuda, else mps, else cpu; of several GPUs that of this process.

    Raises:
        UserError: a device that this machine does not have.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        usable = ", ".join(kind for kind, there in available.items() if there)
        raise UserError(f"runtime.device={name}: this machine has none; allowed: auto, {usable}")
    if name == "cuda" and distributed.size() > 1:
        place, num_seen = distributed.local_rank(), torch.cuda.device_count()
        if place >= num_seen:
            raise UserError(
                f"runtime.device=cuda: process {place} of this machine (from 0) sees {num_seen} "
                f"GPU{'s' * (num_seen != 1)}; each process takes one of its own and must see all of them"
            )
        device = torch.device(name, place)
        torch.cuda.set_device(device)
        return device
    return torch.device(name)


def device_facts(device: torch.device) -> Device:
    """What the record says of the hardware."""
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
