"""The table of a benchmark, from records alone: measured numbers, their differences, published ones next to them.

A cell is a mean over seeds with a 95 % interval (Student's t). Differences to the reference row are paired
(`mim_bench.analysis.difference`). Best rows are marked only where they differ from every other row.
`mim_bench.analysis.render` turns the table into Markdown, CSV and TeX.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import special

from mim_bench.analysis import difference, gates
from mim_bench.analysis.column import Column, columns_of, is_compared
from mim_bench.analysis.difference import Difference
from mim_bench.analysis.external import ExternalRow, external_rows
from mim_bench.analysis.published import match
from mim_bench.analysis.published.reason import reasons
from mim_bench.analysis.published.rows import PublishedRow
from mim_bench.analysis.row import COSTS, RowRecords, cost, records_by_row
from mim_bench.config.benchmark import Benchmark, at_preset, load_benchmark
from mim_bench.config.cells import cells
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.errors import UserError, suggest
from mim_bench.records import comparability, store, swept
from mim_bench.records.record import Record
from mim_bench.records.store import CellRecord

CONTROL = "random weights (control)"


@dataclass(frozen=True)
class Value:
    """A number over seeds: fractions for accuracies, else in the unit of the heading."""

    of_seed: dict[int, float]
    is_best: bool = False

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.of_seed.values())))

    @property
    def half(self) -> float | None:
        """Half the 95 % interval, Student's t over seeds; None below three seeds."""
        return half_interval(list(self.of_seed.values()))


@dataclass(frozen=True)
class Row:
    """One row; its keys are those of the columns."""

    label: str
    values: dict[str, Value]
    differences: dict[str, Difference]
    """Differences to the reference row by measure; empty for that row itself."""
    published: dict[str, list[PublishedRow]]
    reasons: dict[str, str]
    """Reasons why published numbers are not comparable, as `mim_bench.analysis.published.reason` says."""
    num_seeds: int
    is_baseline: bool
    """True for a row that needs no pre-training."""
    below_gate: str
    """Reason why the row's pre-training does not count; empty if it does. See `mim_bench.analysis.gates`."""
    num_missing: int
    """Declared seeds that lack the record of a protocol, or of all: failed, or not run yet."""
    stale: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A benchmark's table."""

    benchmark: Benchmark
    name: str
    preset: str
    columns: list[Column]
    rows: list[Row]
    reference: str
    """Label of the row that others are compared with; empty where there are no runs."""
    published_only: list[PublishedRow]
    """Published rows without a measured counterpart."""
    differing: list[str] = field(default_factory=list)
    """Fields in which the rows' configs differ."""
    entries: list[CellRecord] = field(default_factory=list)
    """The records that it was made from."""
    below_gate: str | None = None
    """Reason why the table as a whole is no finding; unset if it is informative."""
    exploratory: str = ""
    """Reason why nothing is ranked whatever the numbers are; empty if rows may be ranked."""
    by_label: Mapping[str, RowRecords] = field(default_factory=dict)
    """Label -> the records of its row; without the control."""
    external: list[ExternalRow] = field(default_factory=list)
    """Numbers of encoders from outside, where the benchmark has no runs."""

    @property
    def records(self) -> list[Record]:
        return [entry.record for entry in self.entries]

    def row(self, label: str) -> Row:
        """The row of a label."""
        return next(row for row in self.rows if row.label == label)


MOST_IN_CELL = 2
"""Published numbers that are printed in a cell of a measured row."""


def half_interval(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of a mean over seeds, Student's t; None below three, where it says nothing."""
    if len(values) < 3:
        return None
    stderr = np.std(values, ddof=1) / len(values) ** 0.5
    return float(special.stdtrit(len(values) - 1, 0.975) * stderr)


def build(
    name: str, preset: str, results: Path = Path("results"), overrides: Sequence[str] = ()
) -> Table:
    """The table of a benchmark at a preset, by default with the settings that it was swept with."""
    name, preset, overrides = swept.recall(name, preset, results, overrides)
    benchmark = at_preset(load_benchmark(name), preset)
    available = match.published_rows(benchmark)
    if benchmark.division == "published":
        external = external_rows(name, preset, results, available)
        return Table(benchmark, name, preset, [], [], "", available, external=external)
    entries = store.benchmark_records(name, preset, results, overrides)
    differing = comparability.check(entries)
    by_label = records_by_row(benchmark, cells(name, preset, overrides), entries)
    reference = _reference(benchmark, by_label)
    columns = columns_of(benchmark, by_label, gates.primary_measure(preset))
    below = gates.untrained_rows(entries)
    exploratory = gates.exploratory(by_label)
    rows = [
        _row(line, columns, by_label[reference], benchmark, available, below.get(line.label, ""))
        for line in by_label.values()
    ]
    tier = gates.tier(by_label, preset, below)
    if control := _control(entries, columns):
        rows.append(control)
    _compare(rows, columns, by_label, reference, ranks=not (tier or exploratory))
    in_cells = {
        id(number)
        for row in rows
        for numbers in row.published.values()
        if len(numbers) <= MOST_IN_CELL  # more are listed below
        for number in numbers
    }
    return Table(
        benchmark, name, preset, columns, rows, reference,
        [row for row in available if id(row) not in in_cells],
        differing, entries, tier, exploratory, by_label,
    )  # fmt: skip


def _reference(benchmark: Benchmark, by_label: Mapping[str, RowRecords]) -> str:
    label = benchmark.reference or next(iter(by_label))
    if label not in by_label:
        raise UserError(f"reference: no row '{label}'; {suggest(label, by_label)}")
    return label


def _row(
    records: RowRecords,
    columns: Sequence[Column],
    reference: RowRecords,
    benchmark: Benchmark,
    available: list[PublishedRow],
    below_gate: str,
) -> Row:
    values, published, why = {}, {}, {}
    for column in columns:
        key = column.key
        of_seed = records.values(key) if column.is_fraction else cost(key, records, reference)
        if of_seed:
            values[key] = Value(of_seed)
        measure = next((name for name in records.protocols if PROTOCOLS[name].column == key), key)
        counterparts = (
            match.counterparts(benchmark, records.cell, measure, available)
            if available and not records.is_baseline
            else []
        )
        if counterparts and of_seed:
            published[key] = counterparts
            record = records.record(_protocol_of(measure))
            why |= {} if record is None else reasons(counterparts[0], record)
    recorded = {(entry.record.seed, entry.record.protocol) for entry in records.entries}
    incomplete = {
        seed
        for seed in records.declared
        if any((seed, p) not in recorded for p in records.protocols)
    }
    return Row(
        label=records.label,
        values=values,
        differences={},
        published=published,
        reasons=why,
        num_seeds=len({seed for seed, _ in recorded}),
        is_baseline=records.is_baseline,
        below_gate=below_gate,
        num_missing=len(incomplete),
        stale=tuple(sorted({why for entry in records.entries for why in entry.stale})),
    )


def _protocol_of(key: str) -> str:
    return "speed" if key in COSTS else key.split()[0]


def _compare(
    rows: Sequence[Row],
    columns: Sequence[Column],
    by_label: Mapping[str, RowRecords],
    reference: str,
    *,
    ranks: bool,
) -> None:
    """Writes the differences to the reference into the rows, and marks a value that is better than every other.

    What is below a gate or stale is not ranked: a row among the others, or, without `ranks`, the whole table.
    """
    for column in columns:
        key = column.key
        if not is_compared(key):
            continue
        correct = {
            row.label: by_label[row.label].correctness(key)
            for row in rows
            if key in row.values and not row.is_baseline
        }
        deltas = (
            difference.differences(
                correct, reference, _accuracies(rows, by_label, key, correct[reference])
            )
            if reference in correct
            else {}
        )
        counted = {row.label for row in rows if not row.below_gate and not row.stale}
        ranked = {label: of_seed for label, of_seed in correct.items() if label in counted}
        leader = difference.best(ranked) if ranks else None
        if leader is not None:
            baselines = _accuracies(rows, by_label, key, correct[leader])
            leader = leader if _is_above(leader, correct, baselines) else None
        for row in rows:
            if row.label in deltas:
                row.differences[key] = deltas[row.label]
            if row.label == leader:
                row.values[key] = Value(row.values[key].of_seed, is_best=True)


def _is_above(
    leader: str, correct: difference.Rows, baselines: Mapping[str, dict[int, float]]
) -> bool:
    """True if every baseline is distinguishably worse than the leader."""
    deltas = difference.differences(correct, leader, baselines)
    return all(
        deltas[label].mean < 0 and deltas[label].is_distinguishable
        for label in baselines
        if label in deltas
    )


def _accuracies(
    rows: Sequence[Row], by_label: Mapping[str, RowRecords], key: str, seeds: Iterable[int]
) -> dict[str, dict[int, float]]:
    """Label -> seed -> accuracy of the rows that need no pre-training; of raw pixels, say, the same for each seed."""
    accuracies: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.is_baseline and key in row.values:
            value = row.values[key]
            has_seeds = row.label == CONTROL or by_label[row.label].has_seeds
            accuracies[row.label] = (
                dict(value.of_seed) if has_seeds else dict.fromkeys(seeds, value.mean)
            )
    return accuracies


def _control(entries: Sequence[CellRecord], columns: Sequence[Column]) -> Row | None:
    """The encoder at its random initial weights: one row, where it is the same for every row of a seed."""
    values: dict[str, dict[int, set[float]]] = {}
    for entry in entries:
        for key, measure in entry.measures.items():
            if measure.control is not None:
                values.setdefault(key, {}).setdefault(entry.record.seed, set()).add(measure.control)
    keys = {column.key for column in columns}
    shared = {
        key: Value({seed: next(iter(seed_values)) for seed, seed_values in sorted(of_seed.items())})
        for key, of_seed in values.items()
        if key in keys and all(len(seed_values) == 1 for seed_values in of_seed.values())
    }
    if not shared:
        return None
    num_seeds = max(len(value.of_seed) for value in shared.values())
    return Row(CONTROL, shared, {}, {}, {}, num_seeds, True, "", 0, ())
