"""Provenance of a number: the commit and package versions of this process, and the device of a record."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from mim_bench.schema import Frozen

_PACKAGES = ("mim_bench", "torch", "torchvision", "timm", "numpy", "pillow", "scikit-image")
_SOURCE = ("mim_bench", "targets", "benchmarks", "pyproject.toml")


class Code(Frozen):
    """The source that made a number."""

    commit: str
    """Commit of the checkout that the package runs from; `wheel-<version>` for an installed wheel."""
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


def code() -> Code:
    """Commit and dirty flag of the package's own checkout or wheel, never of the current folder."""
    try:
        return _code()
    except (OSError, subprocess.CalledProcessError):  # not kept: git may be there the next time
        return Code(commit="none", dirty=True)


@functools.cache
def _code() -> Code:
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
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        return run(command, cwd=root).stdout.strip()  # the current folder may be gone

    return Code(
        commit=git("rev-parse", "HEAD"), dirty=bool(git("status", "--porcelain", "--", *_SOURCE))
    )


@functools.cache
def versions() -> dict[str, str]:
    """Python, the packages that can move a number, and the system."""
    by_package = {"python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            by_package[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            by_package[package] = "not installed"
    return by_package
