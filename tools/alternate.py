"""Timing several sides in turns in one process, so that a disturbance hits all alike; the figures as text and file."""

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mim_bench.records import provenance
from mim_bench.train import environment

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "speed"
ALTERNATIONS = 5
OURS = "mim_bench"


def alternate(sides: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Side -> one figure an alternation; a first alternation warms up and is not kept."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(1 + ALTERNATIONS):
        for name, measure in sides.items():
            figure = measure()
            if turn:
                found[name].append(figure)
    return found


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """`1.63 [1.58, 1.66]`: theirs over ours, median, least and greatest of the alternations."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(each):.2f} [{min(each):.2f}, {max(each):.2f}]"


def write(
    folder: Path, prefix: str, device: torch.device, content: dict[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """Writes `<prefix><device>.json` with the device's name and the commit; returns its path and its content."""
    facts = environment.device_facts(device)
    whole = {"device": facts.name, "commit": provenance.code().commit, **content}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{prefix}{re.sub('[^a-z0-9]+', '-', facts.name.lower()).strip('-')}.json"
    file.write_text(json.dumps(whole, indent=1) + "\n")
    return file, whole
