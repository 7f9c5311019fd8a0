"""Settings that a folder of records was swept with, remembered for its tables and figures.

`results/<benchmark>/<preset>/sweep.json` holds the settings; files from outside are copied: a benchmark's to
`results/<benchmark>/<benchmark>.toml`, a preset's to `results/<benchmark>/<preset>/<preset>.toml`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mim_bench.config import recipe
from mim_bench.config.cells import SEEDS
from mim_bench.errors import UserError
from mim_bench.files import copy_file, read_json, write_text
from mim_bench.records.store import home

_ELSEWHERE = ("runtime.", "data.source=", "data.skip_bad_images=", SEEDS)
"""Settings that may differ from one sweep into a folder to the next: where it runs, and with which seeds."""


def remember(name: str, preset: str, results: Path, overrides: Sequence[str]) -> None:
    """Writes down what a sweep is made with; refuses to mix it with records of other settings."""
    folder = home(name, preset, results)
    before = _overrides(folder)
    if any(folder.glob("records/*.json")) and _of_results(before) != _of_results(overrides):
        raise UserError(
            f"{folder} holds records of a sweep with {' '.join(_of_results(before)) or 'no settings'}, not with "
            f"{' '.join(_of_results(overrides)) or 'none'}; choose another --results"
        )
    kept = [text for text in overrides if not text.startswith(("runtime.", SEEDS))]
    old, new = (_seeds(texts) for texts in (before, overrides))
    if new and (old or not any(folder.glob("records/*.json"))):
        kept.append(SEEDS + ",".join(map(str, sorted(old | new))))
    write_text(folder / "sweep.json", json.dumps({"overrides": kept}, indent=1) + "\n")
    for file, copy in (
        (name, results / Path(name).stem / Path(name).name), (preset, folder / Path(preset).name),
    ):  # fmt: skip
        if file.endswith(".toml") and copy.resolve() != Path(file).resolve():
            copy_file(Path(file), copy)


class Swept(NamedTuple):
    """Settings that a folder of results was swept with."""

    name: str
    """Name of the benchmark, or its file where it came from outside."""
    preset: str
    """Name of the preset, or its file likewise."""
    overrides: tuple[str, ...]


def recall(name: str, preset: str, results: Path, overrides: Sequence[str] = ()) -> Swept:
    """Sweep settings of a folder below `results`; settings that are given count instead of the remembered ones."""
    folder = home(name, preset, results)

    def name_or_copy(text: str, category: str, copy: Path) -> str:
        return str(copy) if text not in recipe.names(category) and copy.is_file() else text

    return Swept(
        name_or_copy(name, "benchmarks", results / name / f"{name}.toml"),
        name_or_copy(preset, "preset", folder / f"{preset}.toml"),
        tuple(overrides or _overrides(folder)),
    )


def names(results: Path) -> list[str]:
    """Benchmarks from outside that lie in a folder of results."""
    shipped = recipe.names("benchmarks")
    benchmarks = (
        path.parent.name
        for path in sorted(results.glob("*/*.toml"))
        if path.stem == path.parent.name
    )
    return [name for name in benchmarks if name not in shipped]


def _overrides(folder: Path) -> list[str]:
    path = folder / "sweep.json"
    if not path.is_file():
        return []
    try:
        return [str(text) for text in read_json(path)["overrides"]]
    except (KeyError, TypeError):
        raise UserError(f"{path} is damaged; it holds the settings of a sweep") from None


def _of_results(overrides: Sequence[str]) -> list[str]:
    return sorted(text for text in overrides if not text.startswith(_ELSEWHERE))


def _seeds(overrides: Sequence[str]) -> set[int]:
    texts = [text.removeprefix(SEEDS) for text in overrides if text.startswith(SEEDS)]
    return {int(part) for text in texts for part in text.split(",")}
