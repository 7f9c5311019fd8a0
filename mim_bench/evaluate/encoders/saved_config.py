"""Configuration files next to a file of weights: `config.json` and what libraries put next to it.

Read are Hugging Face's `config.json` and `preprocessor_config.json`, timm's `config.json` (`pretrained_cfg`), and the
`config.json` of a run of ours. All are optional; what they state wins over what a family does by habit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim_bench.errors import UserError
from mim_bench.files import read_json


@dataclass(frozen=True)
class SavedConfig:
    """Facts next to the weights; unset where nothing states them."""

    model_type: str | None = None
    num_heads: int | None = None
    epsilon: float | None = None
    mean: tuple[float, ...] | None = None
    """Per channel, of images in [0, 1]."""
    std: tuple[float, ...] | None = None
    """Per channel, of images in [0, 1]."""
    statistics_from: str = ""
    """Name of the file that states mean and std."""


def read_saved_config(path: Path) -> SavedConfig:
    """The facts next to a file of weights."""
    config = _read(path.with_name("config.json"))
    facts: dict[str, Any] = {}
    if "model_type" in config:
        facts = {
            "model_type": str(config["model_type"]),
            "num_heads": config.get("num_attention_heads"),
            "epsilon": config.get("layer_norm_eps"),
        }
    for section in ("model", "model_args"):  # of a run of ours, of timm's
        if isinstance(content := config.get(section), dict):
            facts |= {"num_heads": content.get("num_heads")}
    statistics = {
        "config.json": _pair(config.get("pretrained_cfg"), "mean", "std")
        or _pair(config.get("data"), "mean", "std"),
        "preprocessor_config.json": _pair(
            _read(path.with_name("preprocessor_config.json")), "image_mean", "image_std"
        ),
    }
    for name, pair in statistics.items():
        if pair is not None:
            facts |= {"mean": pair[0], "std": pair[1], "statistics_from": name}
    return SavedConfig(**facts)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        content = read_json(path) if path.is_file() else {}
    except UserError:  # somebody else's file of that name
        return {}
    return content if isinstance(content, dict) else {}


def _pair(content: Any, mean: str, std: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if not isinstance(content, dict) or not content.get(mean) or not content.get(std):
        return None
    return tuple(map(float, content[mean])), tuple(map(float, content[std]))
