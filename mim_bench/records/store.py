"""Store of results: its folders, and the record of each cell of a benchmark.

`results/<benchmark>/<preset>/records/<run_id>__<protocol>.json`, each with the correctness of every test
image next to it (`.npz`). One file each: no locks, no merge conflicts. A record proves itself: tables are
made from these files alone, and one that does not belong to the benchmark is named and refused.
"""

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mim_bench.config.cells import Cell, cells
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.run import IDENTITY, RunConfig, digest
from mim_bench.errors import UserError
from mim_bench.files import check_folder, copy_file
from mim_bench.records.keys import Keys, config_of
from mim_bench.records.measure import Measure, measures
from mim_bench.records.record import Record, check_correct, read, read_correct
from mim_bench.records.run_folder import record_path

_FEW = 8
"""Readouts of a record."""


@dataclass(frozen=True)
class CellRecord:
    """A record in its cell."""

    record: Record
    path: Path
    cell: Cell
    stale: tuple[str, ...]
    """Reasons why the record is no longer what the command would make; empty if it is."""

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """See `measures`."""
        return measures(self.record)

    def correct(self, readouts: Sequence[str]) -> dict[str, np.ndarray]:
        """Per-image correctness next to the record, read once: readout -> (N,) bool."""
        # a file is opened once for a few readouts; many draws of few labels are not all wanted
        readout_names = [metric.readout for metric in self.record.metrics]
        packed_readouts = tuple(readout_names if len(readout_names) <= _FEW else readouts)
        key = self.path, self.record.sha256, packed_readouts
        if key not in _PACKED or self.record.sha256 is None:
            correct = read_correct(self.path, self.record, packed_readouts)
            _PACKED[key] = {name: (np.packbits(bits), len(bits)) for name, bits in correct.items()}
        packed = _PACKED[key]
        return {
            readout: np.unpackbits(packed[readout][0], count=packed[readout][1]).view(bool)
            for readout in readouts
        }


_Packed = tuple[np.ndarray, int]
"""Bits, eight images a byte, and the number of images: those of thousands of records are kept."""
_PACKED: dict[tuple[Path, str | None, tuple[str, ...]], dict[str, _Packed]] = {}
"""Record's file, its sha256 and readouts -> bits by readout."""


def home(name: str, preset: str, results: Path) -> Path:
    """Folder of records, tables and figures of a benchmark at a preset; UserError below a file."""
    check_folder(results)
    return results / Path(name).stem / Path(preset).stem


def keep(folder: Path, records: Iterable[Record], destination: Path) -> None:
    """Copies records and their per-image correctness out of a run folder."""
    for record in records:
        copy(record_path(folder, record.protocol), record, destination)


def copy(source: Path, record: Record, destination: Path) -> None:
    """Copies one record and its per-image correctness into a folder of records."""
    target = destination / f"{record.run_id}__{record.protocol}.json"
    arrays = source.with_suffix(".npz")
    if arrays.is_file():  # the record last: it is what is looked for
        copy_file(arrays, target.with_suffix(".npz"))
    copy_file(source, target)


def read_folder(folder: Path) -> list[tuple[Path, Record]]:
    """Every record of a folder, by file name."""
    gc.disable()  # thousands of records are kept: looking for garbage among them is a third of the time
    try:
        paths = sorted(folder.glob("*.json"), key=lambda path: path.name)
        return [(path, _checked(path, _changed(path))) for path in paths]
    finally:
        gc.freeze()  # nor later: of 20,000 records that is 5 s of a table's 17
        gc.enable()


def _changed(path: Path) -> tuple[int, int]:
    """Times at which a record and its images were last written, in ns; 0 for an absent file."""
    times = [p.stat().st_mtime_ns if p.is_file() else 0 for p in (path, path.with_suffix(".npz"))]
    return times[0], times[1]


@lru_cache(maxsize=65_536)
def _checked(path: Path, changed_ns: tuple[int, int]) -> Record:
    record = read(path)
    if path.stem != f"{record.run_id}__{record.protocol}":
        raise UserError(
            f"{path} holds the record of {record.run_id}, protocol {record.protocol}: "
            "its name and its content do not belong together"
        )
    identity = {key: record.config.get(key) for key in IDENTITY}
    if digest(identity) != record.run_hash:
        raise UserError(f"{path} was changed by hand: its config is not that of its run_hash")
    check_correct(path, record)
    return record


def of_same_data(record: Record, config: RunConfig) -> bool:
    """True if a record's data source is the one that a config names, wherever its folder lies."""
    ours, theirs = (source.partition(":") for source in (config.data.source, record.data.source))
    return ours[0] == theirs[0] and Path(ours[2]).name == Path(theirs[2]).name


def find(
    grid_cells: Sequence[Cell], records: Iterable[tuple[Path, Record]]
) -> tuple[list[CellRecord], list[Path]]:
    """Records in their cells, in the order of the cells, and the paths of those that belong to none.

    Data sources are not compared (see `of_same_data`): `comparability` checks that all images are the same.
    """
    keys: dict[int, Keys] = {}  # by number of training images, which bounds the batches
    entries, foreign_paths = [], []
    for path, record in records:
        if record.external is not None:  # divisions never share a table
            foreign_paths.append(path)
            continue
        config, num_images = config_of(record), record.data.num_train_images
        if num_images not in keys:
            keys[num_images] = Keys.of(grid_cells, num_images)
        cell, old = keys[num_images].cell_of(record)
        if cell is None or record.protocol not in cell.config.evaluate.protocols:
            foreign_paths.append(path)
            continue
        expected = keys[num_images].fitted[id(cell)]
        entries.append(CellRecord(record, path, cell, old + _older(record, config, expected)))
    order = {id(cell): position for position, cell in enumerate(grid_cells)}
    # of several records of one place the current one counts, else the newest
    entries.sort(key=lambda entry: (not entry.stale, entry.record.started))
    of_cell = {(order[id(entry.cell)], entry.record.protocol): entry for entry in entries}
    return [entry for _, entry in sorted(of_cell.items())], foreign_paths


def _older(record: Record, config: RunConfig, expected: RunConfig) -> tuple[str, ...]:
    """Parts of a record's protocol that are no longer current."""
    entry = PROTOCOLS[record.protocol]
    reasons = []
    if record.protocol_version != entry.version:
        reasons.append(f"protocol {record.protocol}")
    reasons += [s for s in entry.sections if getattr(config, s) != getattr(expected, s)]
    if entry.has_readouts and config.evaluate.readout != expected.evaluate.readout:
        reasons.append("readout")
    if record.pretrain and record.pretrain.flops is None:
        reasons.append("record without FLOPs")
    return tuple(reasons)


def benchmark_records(
    name: str, preset: str, results: Path = Path("results"), overrides: Sequence[str] = ()
) -> list[CellRecord]:
    """The benchmark's records of a preset, in the order of its cells."""
    folder = home(name, preset, results) / "records"
    entries, foreign_paths = find(cells(name, preset, overrides), read_folder(folder))
    if foreign_paths:
        raise UserError(
            f"{foreign_paths[0]} is no record of benchmark '{Path(name).stem}' at preset '{preset}'"
            + (f", and {len(foreign_paths) - 1} more" if len(foreign_paths) > 1 else "")
            + "; move it away, or give the settings that it was swept with"
        )
    if not entries:
        flag = "" if results == Path("results") else f" --results {results}"
        raise UserError(
            f"no records in {folder}; `sweep {name} --preset {preset}{flag}` makes them"
        )
    return entries


def results(
    benchmark: str, preset: str = "tiny", *, folder: str | Path = "results"
) -> pd.DataFrame:
    """One row per record: its place in the grid, its numbers, control and cost; accuracies are fractions.

    Raises:
        UserError: no records, or a damaged one.
    """
    return frame(benchmark_records(benchmark, preset, Path(folder)))


def frame(entries: Sequence[CellRecord]) -> pd.DataFrame:
    """One row per record; see `results`."""
    rows: list[dict[str, Any]] = []
    for entry in entries:
        record, facts = entry.record, entry.record.pretrain
        by_name = entry.measures
        rows.append(
            {
                **entry.cell.point,
                "target": record.target,
                "seed": record.seed,
                "protocol": record.protocol,
                "preset": record.preset,
                **{name: measure.value for name, measure in by_name.items()},
                **{
                    f"{name} control": measure.control
                    for name, measure in by_name.items()
                    if measure.control is not None
                },
                "n": record.metrics[0].n,
                "images_per_s": facts.images_per_s if facts else None,
                "pretrain_s": facts.seconds if facts else None,
                "fit_s": facts.fit.get("fit_seconds", 0.0) if facts else None,
                "data": record.data.source.partition(":")[0],
                "device": record.device.kind,
                "device_name": record.device.name,
                "commit": record.code.commit,
                "dirty": record.code.dirty,
                "stale": ", ".join(entry.stale),
                "run_id": record.run_id,
                "run_hash": record.run_hash,
            }
        )
    return pd.DataFrame(rows)
