"""A table in files: CSV for programs, TeX for papers, Markdown in a folder or between the marks of a page."""

import re
from pathlib import Path

import pandas as pd

from mim_bench.analysis.published import match
from mim_bench.analysis.render import brief_markdown, main_grid, markdown, published_grid
from mim_bench.analysis.table import Table, is_compared
from mim_bench.errors import UserError, suggest
from mim_bench.files import write_text
from mim_bench.records import store


def correct_csv(table: Table, key: str) -> str:
    """CSV of the number of seeds of each row that classify each test image correctly; empty without such a row."""
    correct = {
        label: sum(of.astype(int) for of in row.correctness(key).values())
        for label, row in table.by_label.items()
        if row.values(key) and not row.is_baseline
    }
    if not correct:
        return ""
    frame = pd.DataFrame({f"{label}, seeds right": right for label, right in correct.items()})
    return frame.to_csv(index_label="test image")


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
            value, difference = row.values.get(column.key), row.differences.get(column.key)
            line[column.key] = None if value is None else value.mean
            line[f"{column.key} half"] = None if value is None else value.half
            if is_compared(column.key):
                line |= {
                    f"{column.key} difference": difference.mean if difference else None,
                    f"{column.key} low": difference.low if difference else None,
                    f"{column.key} high": difference.high if difference else None,
                }
            numbers = row.published.get(column.key, [])
            line[f"{column.key} published"] = "; ".join(published.shown() for published in numbers)
            line[f"{column.key} source"] = "; ".join(published.cite for published in numbers)
        line["not comparable"] = "; ".join(f"{k}: {v}" for k, v in row.reasons.items())
        lines.append(line)
    for row in table.external:
        lines.append({"external": row.facts.source, "sha256": row.facts.sha256,
                      "measure": row.measure.name, "measured": row.measure.value,
                      "control": row.measure.control, "data": row.record.data.source,
                      "published of it": row.published and row.published.value})  # fmt: skip
    for row in table.published_only:
        lines.append({"row": match.setting(row), "published only": row.value, "status": row.status,
                      "metric": row.metric, "protocol": row.protocol, "source": row.cite})  # fmt: skip
    frame = pd.DataFrame(lines)
    has_value = {
        name: any(line.get(name) not in (None, "") for line in lines) for name in frame.columns
    }
    columns = [name for name, is_kept in has_value.items() if is_kept or name == "stale"]
    return frame[columns].to_csv(index=False)


def tex(table: Table) -> str:
    """The main table for a paper that loads `booktabs`."""
    grid = main_grid(table) if table.rows else published_grid(table)
    command = f"python -m mim_bench table {table.name}"
    return f"% {table.benchmark.title}, preset {table.preset}; made by: {command}\n" + grid.tex()


def write_tables(table: Table, results: Path = Path("results")) -> list[Path]:
    """Writes `table.md`, `table.csv`, `table.tex` and, of every record, `records.csv`."""
    folder = store.home(table.name, table.preset, results)
    content = {"table.md": markdown(table), "table.csv": csv(table), "table.tex": tex(table)}
    if table.rows:
        content["records.csv"] = store.frame(table.entries).to_csv(index=False)
    for file, text in content.items():
        write_text(folder / file, text)
    return [folder / file for file in content]


def insert(page: Path, table: Table) -> None:
    """Puts the brief table into a page, between `<!-- table NAME PRESET -->` and `<!-- end -->`."""
    put_between(page, f"<!-- table {table.name} {table.preset} -->", brief_markdown(table))


def put_between(page: Path, beginning: str, content: str) -> None:
    """Puts lines into a page, between the mark `beginning` and `<!-- end -->`; UserError where it has them not."""
    pattern = re.compile(rf"({re.escape(beginning)}\n).*?(<!-- end -->)", re.DOTALL)
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if not pattern.search(text):
        others = [mark for mark in re.findall(r"<!-- .+? -->", text) if mark != "<!-- end -->"]
        hint = f"; {suggest(beginning, others)}" if others else ""
        raise UserError(f"{page} has no marks {beginning} ... <!-- end -->{hint}")
    write_text(page, pattern.sub(lambda m: m[1] + content + m[2], text))
