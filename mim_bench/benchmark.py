"""A benchmark: the cells of one comparison table, and the records that have come in for it.

    python -m mim_bench sweep targets        # every missing cell; the same command again continues

The grid is the science, the preset is the scale. Records are copied from the run folders to
`<results>/<benchmark>/<preset>/records/`, where they are committed.
"""

import itertools
import logging
import shutil
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field, ValidationError

from mim_bench import recipe
from mim_bench.config import RunConfig
from mim_bench.error import UserError
from mim_bench.experiment import Stages, execute
from mim_bench.frozen import Frozen
from mim_bench.record import Record, read
from mim_bench.resolve import explain, resolve
from mim_bench.run_folder import record_path

_logger = logging.getLogger(__name__)


class Benchmark(Frozen):
    """What a file in `benchmarks/` says."""

    description: str
    """One line for `list benchmarks`."""
    rebuilds: str
    """Tables and figures of the literature."""
    division: Literal["closed", "as_published"] = "closed"
    """`closed`: rows differ in the target block only, which is checked."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Declared beforehand; all are reported."""
    protocols: tuple[str, ...] = Field(min_length=1)
    """As in `evaluate.protocols`."""
    grid: dict[str, tuple[Any, ...]] = Field(min_length=1)
    """Field -> its values; `target` names recipes. Cells are the product of all."""


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark."""

    config: RunConfig
    place: dict[str, Any]
    """Field of the grid -> value."""


def load_benchmark(name: str) -> Benchmark:
    """A benchmark by name or path.

    Raises:
        UserError: unknown name, or a file that is not valid.
    """
    try:
        return Benchmark.model_validate(recipe.read("benchmarks", name))
    except ValidationError as error:
        raise UserError(f"benchmark '{name}': {explain(error)}") from None


def cells(name: str, preset: str, overrides: Sequence[str] = ()) -> list[Cell]:
    """Every run of a benchmark, seeds outermost, so that whole comparisons come in first."""
    benchmark = load_benchmark(name)
    found = []
    for seed in benchmark.seeds:
        for values in itertools.product(*benchmark.grid.values()):
            place = dict(zip(benchmark.grid, values, strict=True))
            grid = {key: value for key, value in place.items() if key != "target"}
            grid |= {"seed": seed, "evaluate.protocols": list(benchmark.protocols)}
            config = resolve(place.get("target", "norm_pixel"), preset, overrides, grid).config
            found.append(Cell(config, place))
    return found


def sweep(
    name: str,
    preset: str,
    *,
    out: Path,
    results: Path,
    overrides: Sequence[str] = (),
    stages: Stages | None = None,
    told: Callable[[str], None] = print,
    command: str | None = None,
) -> list[Cell]:
    """Runs every missing cell here, one after another; returns those that failed.

    A failed cell never stops the others; its traceback is in `<out>/failed/`.
    """
    failed = []
    todo = cells(name, preset, overrides)
    for number, cell in enumerate(todo, start=1):
        config = cell.config
        label = f"{number}/{len(todo)} {config.target.name} seed {config.seed}"
        try:
            result = execute(config, out=out, stages=stages, command=command)
        except Exception as error:
            failed.append(cell)
            log = out / "failed" / f"{config.run_id}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc())
            told(f"{label}: failed: {error} ({log})")
            continue
        keep(result.folder, result.records, home(name, preset, results) / "records")
        told(f"{label}: {'was done' if result.was_finished else 'done'}: {result.folder}")
    return failed


def home(name: str, preset: str, results: Path) -> Path:
    """Where records, tables and figures of a benchmark at a preset lie."""
    return results / Path(name).stem / Path(preset).stem


def keep(folder: Path, records: Sequence[Record], to: Path) -> None:
    """Copies records and their per-image correctness out of a run folder."""
    to.mkdir(parents=True, exist_ok=True)
    for record in records:
        source = record_path(folder, record.protocol)
        for suffix in (".npz", ".json"):  # the record last: it is what is looked for
            target = to / f"{record.run_id}__{record.protocol}{suffix}"
            shutil.copyfile(source.with_suffix(suffix), target)


def read_records(name: str, preset: str, results: Path = Path("results")) -> list[Record]:
    """The benchmark's records of a preset, in a fixed order.

    Raises:
        UserError: there are none, or one is damaged.
    """
    folder = home(name, preset, results) / "records"
    records = [read(path) for path in sorted(folder.glob("*.json"))]
    if not records:
        raise UserError(f"no records in {folder}; `sweep {name} --preset {preset}` makes them")
    return records


def results(
    benchmark: str, preset: str = "tiny", *, folder: str | Path = "results"
) -> pd.DataFrame:
    """One row per record: identity, declared number, control, cost; accuracies are fractions.

    Raises:
        UserError: no records, or a damaged one.
    """
    rows = []
    for record in read_records(benchmark, preset, Path(folder)):
        control = record.control_metric()
        rows.append(
            {
                "target": record.target,
                "seed": record.seed,
                "protocol": record.protocol,
                "preset": record.preset,
                "readout": record.declared_readout,
                "top1": record.metric().value,
                "stderr": record.metric().stderr,
                "n": record.metric().n,
                "control": None if control is None else control.value,
                **{f"top1 {metric.readout}": metric.value for metric in record.metrics},
                "images_per_s": record.pretrain.images_per_s,
                "pretrain_s": record.pretrain.seconds,
                "fit_s": record.pretrain.fit.get("fit_seconds", 0.0),
                "data": record.data.source,
                "device": record.device.kind,
                "device_name": record.device.name,
                "commit": record.code.commit,
                "dirty": record.code.dirty,
                "run_id": record.run_id,
                "run_hash": record.run_hash,
            }
        )
    return pd.DataFrame(rows)
