"""A table as text: Markdown for people, CSV for programs, TeX for papers.

Accuracies are per cent here and fractions in the CSV. `indistinguishable` is printed where a difference is not
significant among all of its column (Holm), which an interval of its own may still exclude; such rows are not ranked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mim_bench.analysis import gates, headline
from mim_bench.analysis.column import Column, is_compared
from mim_bench.analysis.difference import Difference
from mim_bench.analysis.external import external_grid
from mim_bench.analysis.grid import MISSING, Grid, TableCell
from mim_bench.analysis.notes import notes, sources
from mim_bench.analysis.published import match
from mim_bench.analysis.published.rows import PublishedRow
from mim_bench.analysis.table import MOST_IN_CELL, Table, Value
from mim_bench.config.protocol import PROTOCOLS


def value_cell(value: Value | None, column: Column) -> TableCell:
    """`mean ± half the 95 % interval`, of two seeds `mean (one, other)`; `-` without a value."""
    if value is None:
        return MISSING
    factor = 100 if column.is_fraction else 1
    decimals = _decimals(column, value)
    detail = ""
    if value.half is not None and (column.is_fraction or value.half > 0):
        detail = f"± {factor * value.half:.{decimals}f}"
    elif len(value.of_seed) == 2 and column.is_fraction:
        detail = f"({', '.join(f'{factor * seed_value:.{decimals}f}' for seed_value in value.of_seed.values())})"
    mean = factor * value.mean
    return TableCell(f"{mean:.{decimals}f}", mean, detail, is_bold=value.is_best)


def _decimals(column: Column, value: Value) -> int:
    if column.is_fraction or column.key in ("step_ms", "target_share", "epochs_to_scratch"):
        return 1
    if column.key == "fit_s" or value.mean >= 100:
        return 0
    if value.mean >= 10:
        return 1
    return 2 if value.mean >= 0.1 else 4


def difference_cell(difference: Difference | None) -> TableCell:
    """`+2.0 [+0.8, +3.1]` in points of accuracy, or `indistinguishable` (`one seed`, which shows nothing) with its
    interval."""
    if difference is None:
        return MISSING
    if not difference.is_distinguishable:
        verdict = "one seed" if difference.num_seeds == 1 else "indistinguishable"
        return TableCell(verdict, 0.0, difference.interval, is_faint=True)
    return TableCell(f"{100 * difference.mean:+.1f}", 100 * difference.mean, difference.interval)


def _published_cell(rows: Sequence[PublishedRow], cited: Sequence[str]) -> TableCell:
    """`84.9 [1]`: values with the number of their source, of many their range; `-` without any."""
    if not rows:
        return MISSING
    if len(rows) > MOST_IN_CELL:
        low, high = min(row.value for row in rows), max(row.value for row in rows)
        return TableCell(f"{len(rows)} rows, {low:.1f} to {high:.1f} (below)", rows[0].value)
    texts = [f"{row.shown()} [{cited.index(row.cite) + 1}]" for row in rows]
    return TableCell("; ".join(texts), rows[0].value)


def main_columns(table: Table) -> list[Column]:
    """All but those of other readouts."""
    return [column for column in table.columns if "@" not in column.key]


def first_heading(table: Table) -> str:
    """Heading of the row labels: `target`, `target, ratio`."""
    cell = next((entry.cell for entry in table.entries), None)
    fields = (
        ["" if field == "variant" else field.rpartition(".")[2] for field in cell.point]
        if cell
        else []
    )
    return ", ".join(field.replace("_", " ") for field in fields if field) or "row"


def main_grid(table: Table, *, brief: bool = False) -> Grid:
    """The main table; `brief`: without published numbers, which are then printed elsewhere."""
    columns, cited = main_columns(table), sources(table)
    compared = [
        column
        for column in columns
        if is_compared(column.key)
        and any(column.key in row.differences for row in table.rows)
        and (PROTOCOLS[column.key.split()[0]].panel or not brief)
    ]
    with_published = [
        c for c in columns if not brief and any(c.key in row.published for row in table.rows)
    ]
    headings = [first_heading(table)]
    for column in columns:
        headings.append(column.heading)
        if column in compared:
            headings.append("Δ to " + table.reference)
    headings += [f"published {c.heading}" for c in with_published]
    headings += ["not comparable because"] if with_published else []
    headings += ["seeds"]
    rows = []
    for row in table.rows:
        remarks = [gates.BELOW] * bool(row.below_gate) + ["stale"] * bool(row.stale)
        cells = [TableCell(row.label + (f" ({', '.join(remarks)})" if remarks else ""))]
        for column in columns:
            cells.append(value_cell(row.values.get(column.key), column))
            if column in compared:
                is_reference = row.label == table.reference
                difference = difference_cell(row.differences.get(column.key))
                cells.append(TableCell("reference", 0.0) if is_reference else difference)
        cells += [_published_cell(row.published.get(c.key, []), cited) for c in with_published]
        if with_published:
            cells.append(TableCell(", ".join(row.reasons) or "-"))
        missing = f" ({row.num_missing} missing)" if row.num_missing else ""
        cells.append(TableCell(f"{row.num_seeds}{missing}", row.num_seeds))
        rows.append(cells)
    return Grid(headings, rows)


def readout_grid(table: Table) -> Grid:
    """Linear probe and kNN at every readout (few labels have too many numbers for that); no rows where there is only
    one readout."""
    declared = {c.key for c in table.columns if "@" not in c.key and "%" not in c.key}
    columns = [
        c
        for c in table.columns
        if (protocol := c.key.partition(" ")[0]) in declared and _has_readouts(protocol)
    ]
    if not any("@" in column.key for column in columns):
        return Grid([], [])
    columns.sort(key=lambda column: column.key.partition(" ")[0])
    first = table.records[0].config["evaluate"]
    readout = f"{first['layer']}/{first['pooling']}"
    headings = [first_heading(table)] + [
        c.heading.replace(" @", "") if "@" in c.key else c.heading.replace(" %", f" {readout} * %")
        for c in columns
    ]
    return Grid(
        headings,
        [
            [
                TableCell(row.label),
                *(replace(value_cell(row.values.get(c.key), c), is_bold=False) for c in columns),
            ]
            for row in table.rows
        ],
    )


def _has_readouts(protocol: str) -> bool:
    spec = PROTOCOLS.get(protocol)
    return spec is not None and spec.has_readouts


EXTERNAL = "Evaluated here, division external"
EXTERNAL_NOTE = (
    "Encoders as they were found, each with its own data and recipe: no comparison of targets. "
    "± is the 95 % interval that the test images leave; published is of the very weights."
)
_BRIEF_NOTES = ("Preset", "Readout", "Differences", "Below the gate", "No raw pixels", "Commit")
"""Beginnings of the notes that go with a table wherever it is shown."""


def markdown(table: Table) -> str:
    """The whole table with its notes."""
    parts = [
        f"# {table.benchmark.title}",
        f"Rebuilds: {table.benchmark.rebuilds}. {table.benchmark.claim}",
    ]
    if table.rows:
        parts += [main_grid(table).markdown(), _bullets(notes(table))]
        if (readouts := readout_grid(table)).rows:
            parts += ["## Every readout", readouts.markdown(), "* the declared readout."]
    if table.external:
        grid = external_grid(table.external)
        parts += [f"## {EXTERNAL}", grid.markdown(), EXTERNAL_NOTE]
    if table.published_only:
        heading = "## Published rows without a measured one" if table.rows else "## Published"
        parts += [heading, published_grid(table).markdown()]
    return "\n\n".join(parts) + "\n"


def brief_markdown(table: Table) -> str:
    """The table for a first screen: the headline, the numbers and where to find the rest."""
    shown, headline_text = notes(table), headline.sentence(table)
    path = f"results/{table.name}/{table.preset}/table.md"
    link = f"Published numbers, every readout and the config difference of the rows: [table.md]({path})."
    brief = [note for note in shown if note.startswith(_BRIEF_NOTES)]
    parts = [headline_text, main_grid(table, brief=True).markdown(), _bullets([*brief, link])]
    return "\n\n".join(part for part in parts if part) + "\n"


def published_grid(table: Table) -> Grid:
    """The published numbers without a measured row."""
    published = table.benchmark.published
    columns = published.columns.values() if published else ()
    rows = [
        [
            *map(TableCell, (match.setting(row, columns), row.protocol, row.metric)),
            TableCell(row.shown(), row.value),
            TableCell(row.cite),
        ]
        for row in table.published_only
    ]
    return Grid(["published", "protocol", "metric", "value", "source"], rows)


def published_and_measured(table: Table) -> Grid:
    """Each published number next to the measured one of its row, and why the two are not comparable."""
    columns = {column.key: column for column in table.columns}
    rows = [
        [
            TableCell(row.label),
            TableCell(columns[key].heading.removesuffix(" %")),
            value_cell(row.values.get(key), columns[key]),
            TableCell(number.shown(), number.value),
            TableCell(_status(row.reasons)),
            TableCell(number.cite),
        ]
        for row in table.rows
        for key, numbers in row.published.items()
        for number in numbers
    ]
    return Grid(["row", "measure", "measured", "published", "status", "source"], rows)


def _status(reasons: Mapping[str, str]) -> str:
    """`claimed; not comparable because of data, model`, or `comparable`."""
    return f"claimed; not comparable because of {', '.join(reasons)}" if reasons else "comparable"


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {note}" for note in sentences)
