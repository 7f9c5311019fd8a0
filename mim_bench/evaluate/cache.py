"""Correctness arrays that several runs share, computed once and kept next to their folders: baselines and controls."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from mim_bench.files import replacing
from mim_bench.train import distributed

Correctness = dict[str, np.ndarray]
"""Readout -> (N,) bool: which evaluated images were right."""


def computed_once(path: Path, compute: Callable[[], Correctness]) -> Correctness:
    """Correctness kept at `path`, computed if no run has yet; a second run that needs it meanwhile waits.

    The ranks of one run compute them together.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock") if distributed.size() == 1 else nullcontext():
        if not distributed.on_main(path.is_file):
            arrays = compute()
            distributed.on_main(lambda: _write(path, arrays))
        with np.load(path) as file:
            return dict(file)


def _write(path: Path, arrays: Correctness) -> None:
    columns: dict[str, Any] = dict(arrays)
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **columns)
