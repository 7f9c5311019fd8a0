"""Records that a benchmark still lacks, cell by cell; those that other benchmarks have are copied."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mim_bench.config.cells import Cell, cells
from mim_bench.config.protocol import PROTOCOLS, ProtocolName
from mim_bench.config.run import RunConfig
from mim_bench.config.source import check_source
from mim_bench.errors import UserError, suggest
from mim_bench.files import remove_unfinished
from mim_bench.records import store, swept
from mim_bench.records.record import Record
from mim_bench.records.store import CellRecord, home

Records = Sequence[tuple[Path, Record]]
"""The content of a folder of records."""


@dataclass(frozen=True)
class PendingCell:
    """A cell, and the protocols that it has no current record of."""

    cell: Cell
    number: int
    """Place among the benchmark's cells, from 1."""
    total: int
    wanted: tuple[str, ...]
    """Requested protocols, of those of its benchmark."""
    missing: tuple[str, ...]
    """Protocols of `wanted` without a current record."""
    stale: tuple[str, ...] = ()
    """Those of them that have a record which the command would not make today."""

    @property
    def config(self) -> RunConfig:
        """The cell's config with its missing protocols only."""
        config = self.cell.config
        evaluate = config.evaluate.model_copy(update={"protocols": self.missing})
        return config.model_copy(update={"evaluate": evaluate})

    def only(self, *, exclusive: bool) -> "PendingCell":
        """The part whose protocols need an idle machine, or the part whose protocols do not."""
        return self.having(tuple(p for p in self.missing if PROTOCOLS[p].exclusive == exclusive))

    def having(self, missing: tuple[str, ...]) -> "PendingCell":
        """The same with other protocols to be made."""
        return replace(self, missing=missing)

    @property
    def label(self) -> str:
        return f"{self.number}/{self.total} {self.cell.label}, seed {self.cell.config.seed}"


def list_pending(
    name: str,
    preset: str,
    *,
    results: Path,
    overrides: Sequence[str] = (),
    protocols: Sequence[str] | None = None,
    copy: bool = True,
) -> list[PendingCell]:
    """Every cell, with the protocols that it lacks, after records of the same runs have been taken over.

    Args:
        protocols: those to look for; by default all of the benchmark.
        copy: they are to be made: such records are copied, and the settings written down (`records.swept`); if
            not, no file is written.
    """
    for unknown in set(protocols or ()) - set(PROTOCOLS):
        raise UserError(f"protocols: no '{unknown}'; {suggest(unknown, PROTOCOLS)}")
    grid_cells = cells(name, preset, overrides)
    if not grid_cells:
        raise UserError(f"benchmark '{name}' has published rows only, there is nothing to run")
    declared = {protocol for cell in grid_cells for protocol in cell.config.evaluate.protocols}
    for undeclared in sorted(set(protocols or ()) - declared):
        raise UserError(
            f"protocols: benchmark '{name}' has no '{undeclared}'; {suggest(undeclared, declared)}"
        )
    folder = home(name, preset, results)
    own_records = store.read_folder(folder / "records")
    _check_same_data(grid_cells[0].config, folder, own_records)  # before anything is written
    if copy:
        for source in {cell.config.data.source for cell in grid_cells}:
            check_source(source)
        swept.remember(name, preset, results, overrides)
        remove_unfinished(folder, older_than_s=3600)
    own_entries, _ = store.find(grid_cells, own_records)
    recorded = _have(grid_cells, folder / "records", own_entries, copy)
    outdated = {(id(entry.cell), entry.record.protocol) for entry in own_entries if entry.stale}
    pending_cells = []
    for number, cell in enumerate(grid_cells, start=1):
        cell_protocols = cell.config.evaluate.protocols
        chosen = tuple(name for name in cell_protocols if protocols is None or name in protocols)
        missing = tuple(protocol for protocol in chosen if protocol not in recorded[id(cell)])
        stale = tuple(protocol for protocol in missing if (id(cell), protocol) in outdated)
        pending_cells.append(PendingCell(cell, number, len(grid_cells), chosen, missing, stale))
    return pending_cells


def _check_same_data(config: RunConfig, folder: Path, records: Records) -> None:
    """Refuses records of other images than a benchmark's: no table would take both."""
    for _, record in records:
        if record.external is None and not store.of_same_data(record, config):
            raise UserError(
                f"{folder} holds records of data.source={record.data.source}, not of {config.data.source}: "
                f"give --data {record.data.source}, or another --results"
            )


def lacking(config: RunConfig, records: Path) -> tuple[ProtocolName, ...]:
    """Protocols of a cell that have no record now, after records of the same run have been taken over.

    Args:
        records: the benchmark's, `results/<benchmark>/<preset>/records`.
    """
    cell = Cell(config, {}, {})
    own_entries, _ = store.find([cell], store.read_folder(records))
    recorded = _have([cell], records, own_entries, copy=True)[id(cell)]
    return tuple(protocol for protocol in config.evaluate.protocols if protocol not in recorded)


def _have(
    grid_cells: Sequence[Cell], folder: Path, own_entries: Sequence[CellRecord], copy: bool
) -> dict[int, set[str]]:
    """Protocols of each cell that have a record: `own_entries`, those of the benchmark's folder, or another's."""
    recorded: dict[int, set[str]] = {id(cell): set() for cell in grid_cells}
    for entry in _current(own_entries):
        recorded[id(entry.cell)].add(entry.record.protocol)
    results, preset = folder.parents[2], folder.parent.name
    for other in sorted(results.glob(f"*/{preset}/records")):
        if other != folder:
            lack = [
                cell
                for cell in grid_cells
                if set(cell.config.evaluate.protocols) - recorded[id(cell)]
            ]
            for entry in _current(store.find(lack, store.read_folder(other))[0]):
                if entry.record.protocol not in recorded[id(entry.cell)]:
                    if copy:
                        store.copy(entry.path, entry.record, folder)
                    recorded[id(entry.cell)].add(entry.record.protocol)
    return recorded


def _current(entries: Sequence[CellRecord]) -> list[CellRecord]:
    return [
        entry
        for entry in entries
        if not entry.stale and store.of_same_data(entry.record, entry.cell.config)
    ]
