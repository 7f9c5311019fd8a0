"""A table as text: Markdown for people, CSV for programs, TeX for papers.

Accuracies are per cent here and fractions in the CSV. `indistinguishable` stands where the interval of a
difference contains 0; such rows are not ranked.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mim_bench.analysis.difference import Difference
from mim_bench.analysis.notes import notes, sources
from mim_bench.analysis.published import match
from mim_bench.analysis.published.rows import PublishedRow
from mim_bench.analysis.table import Column, Table, Value, is_compared
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.errors import UserError
from mim_bench.files import write_text
from mim_bench.records import store

_MARK = "**"


def cell(value: Value | None, column: Column) -> str:
    """`mean ± half the 95 % interval`; `-` without a value."""
    if value is None:
        return "-"
    factor = 100 if column.is_accuracy else 1
    decimals = _decimals(column, value)
    text = f"{factor * value.mean:.{decimals}f}"
    if value.half is not None and (column.is_accuracy or value.half > 0):
        text += f" ± {factor * value.half:.{decimals}f}"
    return text


def _decimals(column: Column, value: Value) -> int:
    if column.is_accuracy or column.key in ("step_ms", "target_share", "epochs_to_scratch"):
        return 1
    return 0 if column.key == "fit_s" else (2 if value.mean < 100 else 0)


def difference(found: Difference | None) -> str:
    """`+2.0 [+0.8, +3.1]` in points of accuracy, or `indistinguishable` with its interval."""
    if found is None:
        return "-"
    interval = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    if not found.is_distinguishable:
        return f"indistinguishable {interval}"
    return f"{100 * found.mean:+.1f} {interval}"


def published(found: Sequence[PublishedRow], sources: Sequence[str]) -> str:
    """`84.9 [1]`: values with the number of their source; `-` without any."""
    shown = [f"{row.shown()} [{sources.index(row.cite) + 1}]" for row in found]
    return "; ".join(shown) or "-"


def main_columns(table: Table) -> list[Column]:
    """All but those of other readouts."""
    return [column for column in table.columns if "@" not in column.key]


def first_heading(table: Table) -> str:
    """What the labels of the rows name: `target`, `target, ratio`."""
    cell = next((one.cell for one in table.found), None)
    fields = (
        ["" if field == "variant" else field.rpartition(".")[2] for field in cell.place]
        if cell
        else []
    )
    return ", ".join(field.replace("_", " ") for field in fields if field) or "row"


def texts(table: Table, *, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the main table; `brief`: without published numbers, which then stand elsewhere."""
    columns, cited = main_columns(table), sources(table)
    compared = [
        c
        for c in columns
        if is_compared(c.key) and any(c.key in row.differences for row in table.rows)
    ]
    if brief:
        compared = [c for c in compared if PROTOCOLS[c.key].panel]
    beside = (
        [] if brief else [c for c in columns if any(c.key in row.published for row in table.rows)]
    )
    headings = [first_heading(table)]
    for column in columns:
        headings.append(column.heading)
        if column in compared:
            headings.append("Δ to " + table.reference)
    headings += [f"published {c.heading}" for c in beside]
    headings += ["not comparable because"] if beside else []
    headings += ["seeds"]
    lines = []
    for row in table.rows:
        line = [row.label + (" (stale)" if row.stale else "")]
        for column in columns:
            value = row.values.get(column.key)
            marked = _MARK if value is not None and value.is_best else ""
            line.append(f"{marked}{cell(value, column)}{marked}")
            if column in compared:
                is_reference = row.label == table.reference
                line.append(
                    "reference" if is_reference else difference(row.differences.get(column.key))
                )
        line += [published(row.published.get(c.key, []), cited) for c in beside]
        line += [", ".join(row.reasons) or "-"] if beside else []
        line += [f"{row.num_seeds}" + (f" ({row.num_missing} missing)" if row.num_missing else "")]
        lines.append(line)
    return headings, lines


def readout_texts(table: Table) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of linear probe and kNN at every readout; no rows if nothing was read out so."""
    columns = [c for c in table.columns if _has_readouts(c.key.partition(" ")[0])]
    if not any("@" in column.key for column in columns):
        return [], []
    columns.sort(key=lambda column: column.key.partition(" ")[0])
    first = table.records[0].config["evaluate"]
    declared = f"{first['layer']}/{first['pooling']}"
    headings = [first_heading(table)] + [
        c.heading.replace(" @", "") if "@" in c.key else c.heading.replace(" %", f" {declared} * %")
        for c in columns
    ]
    lines = [[row.label, *(cell(row.values.get(c.key), c) for c in columns)] for row in table.rows]
    return headings, lines


def _has_readouts(protocol: str) -> bool:
    """Whether a protocol has a column at every readout; few labels have too many for that."""
    spec = PROTOCOLS.get(protocol)
    return spec is not None and spec.has_readouts and spec.is_compared


def markdown(table: Table) -> str:
    """The whole table with what must stand under it."""
    parts = [
        f"# {table.benchmark.title}",
        f"Rebuilds: {table.benchmark.rebuilds}. {table.benchmark.claim}",
    ]
    if table.rows:
        parts += [_pipes(*texts(table)), _bullets(notes(table))]
        headings, lines = readout_texts(table)
        if lines:
            parts += ["## Every readout", _pipes(headings, lines), "* the declared readout."]
    if table.published_only:
        heading = "## Published, without a measured row beside" if table.rows else "## Published"
        parts += [heading, _pipes(*published_texts(table))]
    return "\n\n".join(parts) + "\n"


def brief_markdown(table: Table) -> str:
    """The table for a first screen: the numbers and where to find the rest."""
    shown = notes(table)
    place = f"results/{table.name}/{table.preset}/table.md"
    rest = f"Published numbers, every readout and the config difference of the rows: [table.md]({place})."
    kept = [
        note for note in shown if note.startswith(("Preset", "Readout", "Differences", "Commit"))
    ]
    return _pipes(*texts(table, brief=True)) + "\n\n" + _bullets([*kept, rest]) + "\n"


def published_texts(table: Table) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the published numbers that stand alone."""
    lines = [
        [match.setting(row), row.protocol, row.metric, row.shown(), row.cite]
        for row in table.published_only
    ]
    return ["published", "protocol", "metric", "value", "source"], lines


def csv(table: Table) -> str:
    """One line a row: mean, half interval, n, difference and published value of every column, unrounded."""
    lines = []
    for row in table.rows:
        line: dict[str, object] = {
            "row": row.label,
            "seeds": row.num_seeds,
            "missing": row.num_missing,
        }
        line["stale"] = ", ".join(row.stale)
        for column in table.columns:
            value, found = row.values.get(column.key), row.differences.get(column.key)
            line[column.key] = None if value is None else value.mean
            line[f"{column.key} half"] = None if value is None else value.half
            if is_compared(column.key):
                line |= {
                    f"{column.key} difference": found.mean if found else None,
                    f"{column.key} low": found.low if found else None,
                    f"{column.key} high": found.high if found else None,
                }
            several = row.published.get(column.key, [])
            line[f"{column.key} published"] = "; ".join(one.shown() for one in several)
            line[f"{column.key} source"] = "; ".join(one.cite for one in several)
        line["not comparable"] = "; ".join(f"{k}: {v}" for k, v in row.reasons.items())
        lines.append(line)
    for row in table.published_only:
        lines.append({"row": match.setting(row), "published only": row.value, "status": row.status,
                      "metric": row.metric, "protocol": row.protocol, "source": row.cite})  # fmt: skip
    frame = pd.DataFrame(lines)
    said = {name: any(line.get(name) not in (None, "") for line in lines) for name in frame.columns}
    kept = [name for name, is_said in said.items() if is_said or name == "stale"]
    return frame[kept].to_csv(index=False)


def tex(table: Table) -> str:
    """The main table for a paper that loads `booktabs`."""
    headings, lines = texts(table) if table.rows else published_texts(table)
    rows = [" & ".join(map(_tex, line)) + r" \\" for line in lines]
    return "\n".join(
        [
            f"% {table.benchmark.title}, preset {table.preset}; made by: python -m mim_bench table {table.name}",
            rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
            r"\toprule",
            " & ".join(map(_tex, headings)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _tex(text: str) -> str:
    bold = text.startswith(_MARK) and text.endswith(_MARK)
    text = text.removeprefix(_MARK).removesuffix(_MARK)
    for plain, written in (("\\", r"\textbackslash{}"), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("#", r"\#"),
                           ("±", r"$\pm$"), ("×", r"$\times$"), ("Δ", r"$\Delta$")):  # fmt: skip
        text = text.replace(plain, written)
    return rf"\textbf{{{text}}}" if bold else text


def write_tables(table: Table, results: Path = Path("results")) -> list[Path]:
    """Writes `table.md`, `table.csv`, `table.tex` and, of every record, `records.csv`."""
    place = store.home(table.name, table.preset, results)
    content = {"table.md": markdown(table), "table.csv": csv(table), "table.tex": tex(table)}
    if table.rows:
        content["records.csv"] = store.frame(table.found).to_csv(index=False)
    for file, text in content.items():
        write_text(place / file, text)
    return [place / file for file in content]


def insert(page: Path, table: Table) -> None:
    """Puts the brief table into a page, between `<!-- table NAME PRESET -->` and `<!-- end -->`.

    Raises:
        UserError: the page has no such marks.
    """
    start = f"<!-- table {table.name} {table.preset} -->"
    marks = re.compile(rf"({re.escape(start)}\n).*?(<!-- end -->)", re.DOTALL)
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if not marks.search(text):
        raise UserError(f"{page} has no marks {start} ... <!-- end -->")
    write_text(page, marks.sub(lambda m: m[1] + brief_markdown(table) + m[2], text))


def _pipes(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    rows = [headings, rule, *([cell.replace("|", r"\|") for cell in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _bullets(found: Sequence[str]) -> str:
    return "\n".join(f"- {note}" for note in found)
