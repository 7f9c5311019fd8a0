"""Finished pre-trainings and fits, and runs under way, found by config before any image is read.

What a config leaves to the data (size, channels, statistics) is whatever the run found there.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mim_bench.config.cells import Cell, cells
from mim_bench.config.resolve import flatten
from mim_bench.config.run import RunConfig
from mim_bench.errors import UserError
from mim_bench.files import copy_file, read_json
from mim_bench.records.run_folder import fit_path, is_busy, read_config
from mim_bench.records.store import CellRecord

_logger = logging.getLogger(__name__)


def pretrained(out: Path, configs: Iterable[RunConfig]) -> set[str]:
    """Hashes of the runs whose pre-training is finished."""
    finished = [fields for fields, _ in _finished_runs(out)]
    return {
        config.hash for config in configs if any(_fits(config.identity(), run) for run in finished)
    }


def running(out: Path, configs: Iterable[RunConfig]) -> dict[str, Path]:
    """Hash -> folder of the runs that a process of this machine is busy with."""
    busy = {
        folder: flatten(read_config(folder).model_dump(mode="json"))
        for folder in out.glob("*/")
        if is_busy(folder)
    }
    return {
        config.hash: folder
        for config in configs
        for folder, fields in busy.items()
        if _fits(config.identity(), fields)
    }


def fitted(out: Path, config: RunConfig) -> bool:
    """True if a finished run shows that the config's target has been fitted, and the fit is still there."""
    expected = config.model_dump(mode="json", include={"target", "data", "augment"})
    expected["model"] = {"patch_size": config.model.patch_size}
    return any(
        facts.get("fit_key") and fit_path(out, config, facts["fit_key"]).is_file()
        for fields, facts in _finished_runs(out)
        if _fits(expected, fields)
    )


def pictured(grid_cells: Sequence[Cell]) -> list[Cell]:
    """The cells with a place in the picture: of the first seed, the first of each target."""
    first: dict[str, Cell] = {}
    for cell in grid_cells:
        if cell.config.seed == grid_cells[0].config.seed:
            first.setdefault(cell.config.target.name, cell)
    return list(first.values())


def has_runs(name: str, preset: str, out: Path, overrides: Sequence[str] = ()) -> bool:
    """True if the benchmark compares targets and the finished run of each that is shown lies below `out`."""
    grid_cells = pictured(
        [cell for cell in cells(name, preset, overrides) if "target" in cell.point]
    )
    return len(grid_cells) > 1 and pretrained(out, [cell.config for cell in grid_cells]) == {
        cell.config.hash for cell in grid_cells
    }


def keep_pictures(entries: Iterable[CellRecord], out: Path, folder: Path) -> list[Path]:
    """Copies `picture.png` of the runs below `out` to `folder`/pictures, one a target, under the target's name."""
    kept: dict[str, Path] = {}
    for entry in entries:
        source = out / entry.record.run_id / "picture.png"
        destination = folder / "pictures" / f"{entry.record.target}.png"
        if entry.record.target not in kept and source.is_file():
            destination.parent.mkdir(exist_ok=True)
            copy_file(source, destination)
            kept[entry.record.target] = destination
    return list(kept.values())


def _fits(expected: dict[str, Any], fields: dict[str, Any]) -> bool:
    stated = {field: value for field, value in flatten(expected).items() if value is not None}
    return all(field in fields and fields[field] == value for field, value in stated.items())


def _finished_runs(out: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Config, flattened, and facts of each finished pre-training."""
    for path in sorted(out.glob("*/pretrain.json")):
        config = path.parent / "config.json"
        try:
            yield flatten(read_json(config)), read_json(path)
        except UserError as error:  # somebody else's run: it is made again
            _logger.warning("%s: left out: %s", path.parent, error)
