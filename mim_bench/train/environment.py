"""Where a number came from: commit, package versions, device."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from mim_bench.errors import UserError
from mim_bench.schema import Frozen
from mim_bench.train import distributed

_PACKAGES = ("mim_bench", "torch", "torchvision", "timm", "numpy", "pillow", "scikit-image")
_SOURCE = ("mim_bench", "targets", "benchmarks", "pyproject.toml")


class Code(Frozen):
    """The source that made a number."""

    commit: str
    """Of the checkout that the package runs from; `wheel-<version>` for an installed wheel."""
    dirty: bool
    """True if the checkout's code or recipes differed from the commit."""


class Device(Frozen):
    """The hardware a number was made on."""

    kind: str
    """`cpu`, `cuda` or `mps`."""
    name: str
    """Model name of the processor or GPU."""
    count: int
    """Devices that trained together."""
    cpu_threads: int
    """Threads of torch's CPU operations."""


@functools.cache
def code() -> Code:
    """Commit and dirty flag of the package's own checkout or wheel, never of the current folder."""
    package = Path(__file__).resolve().parents[1]
    root = package.parent
    # A source copy made for a queued job, an sdist and a wheel carry their commit along.
    for carried in (root / "COMMIT", package / "_shipped" / "COMMIT"):
        if carried.is_file():
            commit, _, state = carried.read_text().strip().partition(" ")
            return Code(commit=commit, dirty=state == "dirty")
    if not (root / ".git").exists():
        return Code(commit=f"wheel-{importlib.metadata.version('mim_bench')}", dirty=False)

    def git(*arguments: str) -> str:
        command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return Code(
            commit=git("rev-parse", "HEAD"),
            dirty=bool(git("status", "--porcelain", "--", *_SOURCE)),
        )
    except (OSError, subprocess.CalledProcessError):
        return Code(commit="none", dirty=True)


@functools.cache
def versions() -> dict[str, str]:
    """Python, the packages that can move a number, and the system."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


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


def num_cores() -> int:
    """Cores that this process may keep busy: of a machine that several ranks share, its part."""
    if distributed.size() == 1:
        return torch.get_num_threads()
    of_task = os.environ.get(
        "SLURM_CPUS_PER_TASK"
    )  # torchrun sets one thread, whatever the machine
    on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if of_task:
        return int(of_task)
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(seen, (os.cpu_count() or 1) // on_machine))


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
