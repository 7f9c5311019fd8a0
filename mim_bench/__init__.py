"""mim_bench: which reconstruction target makes the best masked image model, everything else being equal?

The names below are the stable Python surface; the command line is a thin layer over it.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mim_bench.config.resolve import load_config
    from mim_bench.evaluate.load_encoder import load_encoder
    from mim_bench.experiment.run import run
    from mim_bench.model.mae import MaskedAutoencoder
    from mim_bench.records.store import results
    from mim_bench.targets.build import build_target

# libgomp reads these when torch is imported. Its threads wait by spinning; where more of them want to run than
# there are cores, a long wait costs up to 30 times. This shorter one costs nothing on an idle machine.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

__all__ = ["MaskedAutoencoder", "build_target", "load_config", "load_encoder", "results", "run"]

_HOME = {
    "MaskedAutoencoder": "mim_bench.model.mae",
    "build_target": "mim_bench.targets.build",
    "load_config": "mim_bench.config.resolve",
    "load_encoder": "mim_bench.evaluate.load_encoder",
    "results": "mim_bench.records.store",
    "run": "mim_bench.experiment.run",
}


def __getattr__(name: str) -> Any:
    """Imports on first use, so that `list` and `--help` do not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'mim_bench' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
