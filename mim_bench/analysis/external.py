"""Encoders from outside in the table of methods: what they reach here, next to what was published of the same weights.

Their records are of division "external" (`mim_bench.experiment.external`) and stand in no table of runs. A published
number is of the very weights only where the file's md5, or timm's name, is the one that its publisher gives.
"""

from dataclasses import dataclass
from pathlib import Path

from scipy import special

from mim_bench.analysis.grid import MISSING, Grid, TableCell
from mim_bench.analysis.published.reason import reasons
from mim_bench.analysis.published.rows import PublishedRow
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.errors import UserError
from mim_bench.records import store
from mim_bench.records.external import ExternalFacts
from mim_bench.records.measure import Measure, measures
from mim_bench.records.record import Record

_Z = float(special.ndtri(0.975))


@dataclass(frozen=True)
class ExternalRow:
    """One number of an encoder from outside."""

    record: Record
    facts: ExternalFacts
    measure: Measure
    published: PublishedRow | None
    """Published number of these very weights."""


def external_rows(
    name: str, preset: str, results: Path, available: list[PublishedRow]
) -> list[ExternalRow]:
    """Every declared number of the external records of a benchmark's folder, encoder by encoder.

    Raises UserError for a record of a run, which belongs to another table.
    """
    rows: list[ExternalRow] = []
    for path, record in store.read_folder(store.home(name, preset, results) / "records"):
        if record.external is None:
            raise UserError(f"{path}: a run's record; benchmark '{name}' has no runs")
        for measure in measures(record).values():
            if "@" not in measure.name and measure.is_fraction:
                counterpart = _of_same_weights(record.external, measure, available)
                rows.append(ExternalRow(record, record.external, measure, counterpart))
    order = list(PROTOCOLS)
    return sorted(
        rows,
        key=lambda row: (row.facts.source, row.facts.sha256, order.index(row.record.protocol)),
    )


def _of_same_weights(
    facts: ExternalFacts, measure: Measure, available: list[PublishedRow]
) -> PublishedRow | None:
    """The published row of these weights and this protocol."""
    for row in available:
        for name in (row.checkpoint or "").split():
            scheme, _, value = name.partition(":")
            is_same = facts.md5.startswith(value) if scheme == "md5" else facts.source == name
            if is_same and row.protocol == measure.name:
                return row
    return None


def external_grid(rows: list[ExternalRow]) -> Grid:
    """Measured, control, published, and the difference where nothing else differs."""
    headings = ["encoder", "family", "sha256", "data", "measure", "measured %", "random weights %",
                "published %", "Δ to published", "not comparable because", "source"]  # fmt: skip
    return Grid(headings, [_cells(row) for row in rows])


def _cells(row: ExternalRow) -> list[TableCell]:
    facts, record, published = row.facts, row.record, row.published
    # one encoder has no seeds: the interval is what the test images leave
    value, half = 100 * row.measure.value, 100 * _Z * row.measure.stderr
    control = row.measure.control
    data = record.data
    source = f"{Path(data.source).name}, {data.num_train_images:,} / {data.num_evaluated_images:,}"
    title = PROTOCOLS[record.protocol].title
    texts = [record.target.removeprefix("external-"), facts.family, facts.sha256[:12], source]
    cells = [
        *map(TableCell, texts),
        TableCell(row.measure.name.replace(record.protocol, title, 1)),
        TableCell(f"{value:.1f}", value, f"± {half:.1f}"),
        MISSING if control is None else TableCell(f"{100 * control:.1f}", 100 * control),
    ]
    if published is None:
        return [*cells, MISSING, MISSING, MISSING, MISSING]
    differing = reasons(published, record)
    difference = value - published.value
    interval = f"[{difference - half:+.1f}, {difference + half:+.1f}]"
    return [
        *cells,
        TableCell(published.shown(), published.value),
        MISSING if differing else TableCell(f"{difference:+.1f}", difference, interval),
        TableCell("; ".join(f"{aspect}: {text}" for aspect, text in differing.items()) or "-"),
        TableCell(published.cite),
    ]
