"""Table notes: setting, readout, method, differences of the rows, sources, provenance."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mim_bench.analysis import difference, effects, gates
from mim_bench.analysis.column import is_compared
from mim_bench.analysis.table import CONTROL, Table
from mim_bench.config.benchmark import load_benchmark
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.records import replay
from mim_bench.records.record import Record

_EQUAL = 1.05
"""Compute of the most costly row over the least that still counts as equal."""


def sources(table: Table) -> list[str]:
    """Cited publications, in the order of the rows."""
    cited = [
        row.cite
        for line in table.rows
        for published_rows in line.published.values()
        for row in published_rows
    ]
    return list(dict.fromkeys(cited))


def notes(table: Table) -> list[str]:
    """The notes of a table, one sentence or more each."""
    records, first = table.records, table.records[0]
    has_readout = any(
        protocol.has_readouts
        for column in table.columns
        if (protocol := PROTOCOLS.get(column.key.split()[0]))
    )
    lines = [_setting(first)]
    if has_readout:
        evaluate = first.config["evaluate"]
        lines.append(
            f"Readout {evaluate['layer']}/{evaluate['pooling']}, the same for every row, on clean images"
            + (
                "; control: the same encoder at its random initial weights."
                if table.rows[-1].label == CONTROL
                else "."
            )
        )
    if any(row.differences for row in table.rows if not row.is_baseline):
        trained = [row for row in table.rows if not row.is_baseline]
        detectable = max(d.detectable for row in trained for d in row.differences.values())
        lines.append(
            f"{difference.METHOD} Least true difference found four times in five: "
            f"{100 * detectable:.1f} points or less. " + _ranking(table)
        )
    lines += _effects(table)
    lines += _gates(table)
    lines += _without_baselines(table)
    lines += _compute(table)
    lines += _convergence(records)
    lines += _division(table)
    if table.differing:
        lines.append(
            f"Rows differ in {fields(table.differing)}; in nothing else. Same seed, same images, crops and masks."
        )
    lines += _cited(table)
    missing = sum(row.num_missing for row in table.rows)
    lines.append(f"Cells failed or not run: {missing}.")
    if stale := {reason for row in table.rows for reason in row.stale}:
        lines.append(
            f"Stale rows are not what the command makes today ({', '.join(sorted(stale))})."
        )
    lines.append(_provenance(table))
    return lines


def _effects(table: Table) -> list[str]:
    """Sentences on the effect of each factor's levels on the first measure, where rows are all their combinations."""
    column = next((c for c in table.columns if is_compared(c.key)), None)
    if column is None:
        return []
    all_effects = effects.effects(table.by_label, table.reference, column.key)
    return [effects.sentence(effect, column.heading.removesuffix(" %")) for effect in all_effects]


def _division(table: Table) -> list[str]:
    """Sentence on the settings that rows may differ in besides the target, where the table is not closed."""
    benchmark = table.benchmark
    if benchmark.division == "as_published":
        return [
            "Division as published: each row keeps its paper's mask, pipeline, augmentation, loss and optimiser, so a "
            "difference is one of whole recipes, not of targets."
        ]
    if benchmark.division != "tuned":
        return []
    tuned_settings = benchmark.tuned.get(table.preset, {})
    listed = "; ".join(
        f"{target}: {_settings(settings)}" for target, settings in tuned_settings.items()
    )
    num_trials = len(load_benchmark(str(benchmark.tuning)).variants)
    return [
        f"Division tuned: {num_trials} trials a target on a held-out slice of the training images (benchmark "
        f"`{benchmark.tuning}`) chose {listed}."
    ]


def _settings(settings: Mapping[str, Any]) -> str:
    """`pretrain.blr x2, mask.ratio 0.5`."""
    return ", ".join(f"{field} {value}" for field, value in settings.items()) or "the preset's own"


def _gates(table: Table) -> list[str]:
    """Sentences on failed gates, and on each row's pre-training against its target's simple predictors."""
    lines = []
    if table.below_gate:
        lines.append(f"Below the gate: {table.below_gate}. Nothing is ranked.")
    failed = {row.label: row.below_gate for row in table.rows if row.below_gate}
    if worse := [f"{label} ({why})" for label, why in failed.items() if why != gates.NO_RIDGE]:
        lines.append(
            "Below the gate, pre-training no better than ridge regression from visible pixels or the mean: "
            f"{'; '.join(worse)}."
        )
    if unknown := [label for label, why in failed.items() if why == gates.NO_RIDGE]:
        lines.append(f"Below the gate, {gates.NO_RIDGE}: {'; '.join(unknown)}.")
    r2: dict[str, list[float]] = {}
    for entry in table.entries:
        if entry.record.pretrain and "model_r2" in entry.record.pretrain.gate:
            r2.setdefault(entry.cell.label, []).append(entry.record.pretrain.gate["model_r2"])
    if r2:
        listed = "; ".join(
            f"{label}: {sum(values) / len(values):.3f}" for label, values in r2.items()
        )
        lines.append(
            f"Share of the position-wise mean's loss that is gone (R2, unseen views): {listed}."
        )
    return lines


def _without_baselines(table: Table) -> list[str]:
    """Sentence on the compared measures under which no fixed feature was evaluated (rule 11)."""
    fixed = [row for row in table.rows if row.is_baseline and row.label != CONTROL]
    missing = [
        column.heading.removesuffix(" %")
        for column in table.columns
        if is_compared(column.key)
        and any(column.key in row.values for row in table.rows)
        and not any(column.key in row.values for row in fixed)
    ]
    return (
        [f"No raw pixels, PCA or target as a feature under {', '.join(missing)}."]
        if missing
        else []
    )


def _compute(table: Table) -> list[str]:
    """Sentence on rows of different compute, where the table does not equal it (rule 13)."""
    costs = [
        row.values["total_tflops"].mean
        for row in table.rows
        if "total_tflops" in row.values and not row.is_baseline
    ]
    if len(costs) < 2 or max(costs) <= _EQUAL * min(costs):
        return []
    return [
        f"Rows took {_tflops(min(costs))} to {_tflops(max(costs))} TFLOPs; at equal compute the benchmark "
        "`equal_compute` compares."
    ]


def _tflops(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _convergence(records: Sequence[Record]) -> list[str]:
    """Sentences on the convergence of probes: solvers that stopped early, losses that still fell."""
    failed = [
        f"{record.protocol} of {record.run_id}"
        for record in records
        if any("NOT converged" in note for note in record.notes)
    ]
    falls: dict[str, list[float]] = {}
    for record in records:
        for note in record.notes:
            for share in re.findall(r"the training loss fell by (-?[\d.]+) %", note):
                falls.setdefault(record.protocol, []).append(float(share))
    lines = [f"NOT converged: {', '.join(failed)}."] if failed else []
    return lines + [
        f"{PROTOCOLS[name].title}: over its last tenth the training loss fell by {min(values):g} to {max(values):g} %."
        for name, values in falls.items()
    ]


def _ranking(table: Table) -> str:
    """Sentence on what is ranked, if anything."""
    num_seeds = max(row.num_seeds for row in table.rows)
    if num_seeds == 1:
        return (
            "A single seed: nothing is distinguishable, for the chance of training is in no interval, only that of the "
            "test images; no row is called the best."
        )
    if table.exploratory:
        return f"Exploratory, {table.exploratory}: no row is called the best."
    return "**Bold**: better than every other row, by Holm over all pairs."


def _setting(record: Record) -> str:
    data, facts = record.config["data"], record.data
    size = "x".join(map(str, data["image_size"]))
    source = (
        facts.source.partition(":")[0]
        if ":" not in facts.source
        else facts.source.rpartition("/")[2]
    )
    dropped = (
        f", {facts.num_skipped_images} unreadable left out" if facts.num_skipped_images else ""
    )
    if facts.num_duplicates:
        dropped += f", {facts.num_duplicates:,} of the latter in training too"
    limited = " Limited data: not comparable with full runs." if facts.limited else ""
    return (
        f"Preset `{record.preset}`: {source} data, {size} px, {facts.num_train_images:,} training and "
        f"{facts.num_evaluated_images:,} {facts.split} images{dropped}, {_model(record)}. "
        f"Mean ± 95 % interval over seeds (Student's t); of two seeds both values.{limited}"
    )


def _model(record: Record) -> str:
    model, pretrain = record.config["model"], record.config["pretrain"]
    return (
        f"ViT {model['depth']} x {model['embed_dim']}, patch {model['patch_size']}, preset length "
        f"{pretrain['epochs']} epochs"
    )


def fields(names: Sequence[str]) -> str:
    """`target.params.a`, `target.name` -> one readable list, the target block folded."""
    inside = [
        name.removeprefix("target.").removeprefix("params.")
        for name in names
        if name.startswith("target.")
    ]
    outside = [f"`{name}`" for name in names if not name.startswith("target.")]
    block = [f"`target` ({', '.join(inside)})"] if inside else []
    return ", ".join(outside + block) or "nothing"


def _cited(table: Table) -> list[str]:
    cited = sources(table)
    if not cited:
        return []
    why: dict[str, list[str]] = {}
    for row in table.rows:
        for aspect, text in row.reasons.items():
            if text not in why.setdefault(aspect, []):
                why[aspect].append(text)
    listed = "; ".join(f"[{number}] {cite}" for number, cite in enumerate(cited, start=1))
    reasons = "; ".join(
        f"{aspect}: {' / '.join(texts[:3])}{' / ...' if len(texts) > 3 else ''}"
        for aspect, texts in why.items()
    )
    return [
        f"Published: {listed}.",
        f"Not comparable because (measured, not published): {reasons}.",
    ]


def _provenance(table: Table) -> str:
    records = table.records
    # a run may have been trained by one commit and evaluated by another
    codes = [r.code for r in records] + [r.pretrain.code for r in records if r.pretrain]
    commits = sorted({c.commit[:12] + " (dirty)" * c.dirty for c in codes if c})
    devices = sorted({f"{r.device.name}, {r.device.cpu_threads} threads" if r.device.kind == "cpu"
                      else f"{r.device.count} x {r.device.name}" for r in records})  # fmt: skip
    replay_note = replay.note(table.entries[0].path.parents[1], records)
    runs, last = (
        len({record.run_hash for record in records}),
        max(record.started for record in records),
    )
    return (
        f"Commit {', '.join(commits)}{replay_note}; {_packages(records)}; {'; '.join(devices)}; "
        f"{records[0].precision}; {runs} runs, {len(records)} records, the last of {last[:10]}."
    )


def _packages(records: Sequence[Record]) -> str:
    """`torch 2.11.0, timm 1.0.31`; of several versions all, for numbers may change with them."""
    versions = {
        name: sorted({record.versions.get(name, "unknown") for record in records})
        for name in ("torch", "timm")
    }
    return ", ".join(f"{name} {' and '.join(numbers)}" for name, numbers in versions.items())
