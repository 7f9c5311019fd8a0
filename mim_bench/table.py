"""The table of a benchmark, made from records only.

Cells are means over seeds with a 95 % interval (Student's t over seeds). Under a closed table stands the
config difference of its rows; a table whose rows differ elsewhere is refused.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from mim_bench.benchmark import home, load_benchmark, read_records, results
from mim_bench.config import IDENTITY
from mim_bench.error import UserError
from mim_bench.record import Record, write_text
from mim_bench.resolve import flatten

_NOT_COMPARED = ("seed",)


def table(name: str, preset: str, folder: Path = Path("results")) -> pd.DataFrame:
    """One row a target in the grid's order, one column a number, as text in per cent.

    Raises:
        UserError: no records, records of several devices, or a closed table whose rows differ elsewhere.
    """
    benchmark = load_benchmark(name)
    records = read_records(name, preset, folder)
    _check_proof(records)
    if benchmark.division == "closed":
        differing_fields(records)
    frame = results(name, preset, folder=folder)
    targets = dict(list(frame.groupby("target")))
    rows = []
    for target in benchmark.grid["target"]:
        if target not in targets:
            continue
        mine = targets[target]
        row = {"target": target}
        for protocol in benchmark.protocols:
            row[f"{protocol} top-1 %"] = interval(list(mine["top1"][mine["protocol"] == protocol]))
        fit_s = max(mine["fit_s"].tolist())
        row["fit s"] = f"{fit_s:.0f}" if fit_s else "-"
        row["seeds"] = str(len(set(mine["seed"])))
        rows.append(row)
    control = {"target": "random weights (control)"}
    for protocol in benchmark.protocols:
        # the control is the same for every target of a seed
        of_seed = {r.seed: r.control_metric() for r in records if r.protocol == protocol}
        values = [metric.value for metric in of_seed.values() if metric is not None]
        control[f"{protocol} top-1 %"] = interval(values)
    num_seeds = len({record.seed for record in records})
    rows.append(control | {"fit s": "-", "seeds": str(num_seeds)})
    return pd.DataFrame(rows)


def interval(values: Sequence[float]) -> str:
    """`mean ± half the 95 % interval` in per cent; a single value has no interval."""
    if not values:
        return "-"
    series = pd.Series(values)
    if len(values) == 1:
        return f"{100 * series.mean():.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * series.sem()
    return f"{100 * series.mean():.1f} ± {100 * half:.1f}"


def _check_proof(records: Sequence[Record]) -> None:
    """A row without a commit, or from another kind of device, is refused."""
    for record in records:
        if record.code.commit in ("", "none"):
            raise UserError(f"record {record.run_id} names no commit")
    kinds = {record.device.kind for record in records}
    if len(kinds) > 1:
        raise UserError(f"records of several device kinds ({', '.join(sorted(kinds))}) never mix")


def differing_fields(records: Sequence[Record]) -> list[str]:
    """Fields in which the rows' configs differ; seeds apart, all of them in the target block.

    Raises:
        UserError: another field differs, so the table would not compare targets.
    """

    sections = [*IDENTITY, "knn", "linear", "finetune"]
    configs = [flatten({k: record.config[k] for k in sections}) for record in records]
    names = sorted({name for config in configs for name in config})
    differing = [
        name
        for name in names
        if name not in _NOT_COMPARED and len({str(config.get(name, "-")) for config in configs}) > 1
    ]
    outside = [name for name in differing if not name.startswith("target.")]
    if outside:
        raise UserError(f"rows differ in {', '.join(outside)}: this is no closed table")
    return differing


def markdown(name: str, preset: str, folder: Path = Path("results")) -> str:
    """The table with what must stand under it."""
    frame = table(name, preset, folder)
    records = read_records(name, preset, folder)
    first = records[0]
    lines = [_row(frame.columns), _row(["---"] + ["---:"] * (len(frame.columns) - 1))]
    lines += [_row(values) for values in frame.itertuples(index=False)]
    data = first.config["data"]
    size = "x".join(map(str, data["image_size"]))
    commits = sorted({r.code.commit[:12] + (" (dirty)" if r.code.dirty else "") for r in records})
    dropped = {record.data.num_skipped_images for record in records}
    notes = [
        f"Preset `{preset}`: {data['source']} data, {size} px, {first.data.num_train_images:,} training "
        f"and {first.data.num_evaluated_images:,} {first.data.split} images, "
        f"{first.config['pretrain']['epochs']} epochs. Mean ± 95 % interval over seeds (Student's t).",
        f"Readout `{first.config['evaluate']['layer']}/{first.config['evaluate']['pooling']}`, the same "
        "for every row, on clean images; control: the same encoder at its random initial weights.",
        f"Rows differ in {_block(differing_fields(records))}; in nothing else. Same seed, same images, "
        "crops and masks.",
        f"Commit {', '.join(commits)}; {first.device.name}, {first.precision}; "
        f"{len({r.run_id for r in records})} runs"
        + (f", {max(dropped)} unreadable images left out." if max(dropped) else "."),
    ]
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def _block(fields: Sequence[str]) -> str:
    """`target.params.a`, `target.name` -> one readable list of the block's fields."""
    names = [field.removeprefix("target.") for field in fields]
    params = [name.removeprefix("params.") for name in names if name.startswith("params.")]
    others = [name for name in names if not name.startswith("params.")]
    return f"`target` ({', '.join([*others, *params])})"


def _row(values: Any) -> str:
    return "| " + " | ".join(map(str, values)) + " |"


def write_tables(name: str, preset: str, folder: Path = Path("results")) -> list[Path]:
    """Writes `table.md` and `table.csv` (every record, fractions) beside the records."""
    place = home(name, preset, folder)
    write_text(place / "table.md", markdown(name, preset, folder))
    write_text(place / "table.csv", results(name, preset, folder=folder).to_csv(index=False))
    return [place / "table.md", place / "table.csv"]


def insert(page: Path, name: str, preset: str, folder: Path = Path("results")) -> None:
    """Puts the table into a page, between `<!-- table NAME PRESET -->` and `<!-- end -->`.

    Raises:
        UserError: the page has no such marks.
    """
    marks = re.compile(
        rf"(<!-- table {re.escape(name)} {preset} -->\n).*?(<!-- end -->)", re.DOTALL
    )
    text = page.read_text(encoding="utf-8")
    if not marks.search(text):
        raise UserError(f"{page} has no marks <!-- table {name} {preset} --> ... <!-- end -->")
    write_text(page, marks.sub(lambda m: m[1] + markdown(name, preset, folder) + m[2], text))
