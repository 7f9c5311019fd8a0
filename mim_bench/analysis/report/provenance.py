"""Provenance of the rows of a table: settings, seeds, commits, and the command that makes each again."""

from collections.abc import Sequence
from dataclasses import dataclass

from mim_bench.analysis.grid import Grid, TableCell
from mim_bench.analysis.row import RowRecords
from mim_bench.analysis.table import Table
from mim_bench.config.cells import SEEDS
from mim_bench.config.resolve import flatten
from mim_bench.records.comparability import compared_settings, differing
from mim_bench.records.store import CellRecord


@dataclass(frozen=True)
class SeedState:
    """One declared seed of a row."""

    seed: int
    state: str
    """`complete`, `missing: knn`, `missing`, `stale: ...`."""
    run_id: str
    commit: str


@dataclass(frozen=True)
class RowOrigin:
    """Provenance of one row, shown on a click."""

    anchor: str
    label: str
    command: str
    seeds: list[SeedState]
    settings: list[tuple[str, str]]
    """Settings in which the row differs from another row."""


def origins(table: Table, prefix: str, overrides: Sequence[str]) -> list[RowOrigin]:
    """One for each row that is pre-trained."""
    rows = _encoders(table)
    configs = _configs(rows)
    names = differing(list(configs.values()))
    return [
        RowOrigin(
            f"{prefix}-row-{index}",
            row.label,
            _command(row, table.preset, overrides),
            _states(row),
            [(name, configs[row.label].get(name, "-")) for name in names],
        )
        for index, row in enumerate(rows)
    ]


def settings_grid(table: Table) -> Grid:
    """Every setting in which two rows differ, a line for each value and the rows that have it: a column a setting is
    wider than any page.
    """
    configs = _configs(_encoders(table))
    lines = []
    for name in differing(list(configs.values())):
        rows_of: dict[str, list[str]] = {}
        for label, config in configs.items():
            if name in config:
                rows_of.setdefault(config[name], []).append(label)
        lines += [
            [TableCell("; ".join(labels)), TableCell(name), TableCell(value)]
            for value, labels in rows_of.items()
        ]
    return Grid(["rows", "setting", "value"], lines)


def shared_settings(table: Table) -> list[tuple[str, str]]:
    """Settings that all rows have alike."""
    configs = list(_configs(_encoders(table)).values())
    if not configs:
        return []
    return [
        item for item in configs[0].items() if all(item in config.items() for config in configs)
    ]


def _encoders(table: Table) -> list[RowRecords]:
    return [row for row in table.by_label.values() if not row.is_baseline and row.entries]


def _configs(rows: Sequence[RowRecords]) -> dict[str, dict[str, str]]:
    return {row.label: dict(sorted(compared_settings(row.entries).items())) for row in rows}


def _command(row: RowRecords, preset: str, overrides: Sequence[str]) -> str:
    record, cell = row.entries[0].record, row.cell
    own = dict(cell.variant.set if cell.variant else {}) | {
        name: value for name, value in cell.point.items() if name != "variant"
    }
    own.pop("target", None)
    values = flatten(record.config)
    settings = [
        f"{name}={values.get(_field(name, record.target), value)}" for name, value in own.items()
    ]
    kept = [text for text in overrides if not text.startswith(SEEDS)]
    protocols = ",".join(sorted(row.protocols))
    return " ".join(
        ["python -m mim_bench run", f"--target {record.target}", f"--preset {preset}",
         f"--seed {record.seed}", f"--protocols {protocols}", *kept, *settings]
    )  # fmt: skip


def _field(name: str, target: str) -> str:
    section, _, name_in_section = name.partition(".")
    return f"target.params.{name_in_section}" if section == target else name


def _states(row: RowRecords) -> list[SeedState]:
    of_seed: dict[int, list[CellRecord]] = {}
    for entry in row.entries:
        of_seed.setdefault(entry.record.seed, []).append(entry)
    return [_state(row, seed, of_seed.get(seed, [])) for seed in row.declared]


def _state(row: RowRecords, seed: int, records: list[CellRecord]) -> SeedState:
    if not records:
        return SeedState(seed, "missing", "", "")
    missing = sorted(row.protocols - {entry.record.protocol for entry in records})
    stale = sorted({reason for entry in records for reason in entry.stale})
    state = f"missing: {', '.join(missing)}" if missing else "complete"
    state += f"; stale: {', '.join(stale)}" * bool(stale)
    commits = sorted({entry.record.code.commit[:12] for entry in records})
    return SeedState(seed, state, records[0].record.run_id, ", ".join(commits))
