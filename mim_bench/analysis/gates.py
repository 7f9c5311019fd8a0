"""Gates: what a table must pass before it counts as a finding (rule 12 of the design).

- A pre-training counts if its loss is below that of ridge regression from visible pixels and mask to its target;
  where there is no such loss to compare with, it does not.
- A table is informative if its best encoder whose pre-training counts is above raw pixels and above equal-width PCA on
  the primary measure, which the preset declares before any run; on the linear probe where those have no such number.
- A table ranks with five seeds of every row on the full test split (rule 5); with less it is exploratory.

What fails a gate is printed with the words "below the gate", and nothing is ranked; nothing is hidden.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache

from mim_bench.analysis.difference import RANKING_SEEDS
from mim_bench.analysis.row import RowRecords, span
from mim_bench.config import recipe
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.errors import UserError
from mim_bench.records.measure import measures
from mim_bench.records.record import Record
from mim_bench.records.store import CellRecord

BELOW = "below the gate"
NO_RIDGE = "no ridge regression to compare with"


@cache
def primary_measure(preset: str) -> str | None:
    """The measure that a preset declares as its primary one; unset for a tier of plumbing."""
    try:
        return recipe.read("preset", preset).get("primary")
    except UserError:  # of somebody else's file, which is not at hand
        return None


def untrained_rows(entries: Sequence[CellRecord]) -> dict[str, str]:
    """Label of a row -> why it is below the gate: in some seed its loss is not below ridge's and the mean's.

    Ridge from few views may be worse than the position-wise mean, which asks for less.
    """
    failed: dict[str, tuple[float, str]] = {}
    for entry in entries:
        if entry.record.pretrain is None:
            continue
        gate, label = entry.record.pretrain.gate, entry.cell.label
        if "ridge_loss" not in gate:
            failed[label] = math.inf, NO_RIDGE
        elif gate["model_loss"] >= (bar := simple_loss(gate)):
            name = "ridge" if bar == gate["ridge_loss"] else "mean"
            text = f"loss {gate['model_loss']:.3f}, {name} {bar:.3f}"
            worse = gate["model_loss"] / bar, text
            failed[label] = max(failed.get(label, worse), worse)
    return {label: text for label, (_, text) in failed.items()}


def simple_loss(gate: Mapping[str, float]) -> float:
    """Loss that a pre-training has to be below: ridge regression's, or the position-wise mean's where that is less."""
    return min(gate["ridge_loss"], gate["mean_loss"])


def remark(entries: Sequence[CellRecord]) -> str:
    """Sentence for the note under a figure on rows and tiers below the gate; empty if all pass."""
    rows = list(untrained_rows(entries))
    is_plumbing = any(primary_measure(entry.record.preset) is None for entry in entries)
    sentences = [f"{', '.join(rows)}: {BELOW}."] if rows else []
    sentences += [f"The preset is plumbing: {BELOW}, no finding."] if is_plumbing else []
    return "".join(f" {text}" for text in sentences)


def verdict(records: Sequence[Record]) -> str:
    """Sentence on what one run has shown and what it has not; empty without records of baselines and gates."""
    named = {
        name: measure.value for record in records for name, measure in measures(record).items()
    }
    gate = next((r.pretrain.gate for r in records if r.pretrain and r.pretrain.gate), {})
    sentences = []
    if "ridge_loss" in gate:
        is_below = gate["model_loss"] >= simple_loss(gate)
        sentences.append(
            f"on unseen views its loss is {gate['model_loss']:.3f}, ridge regression's from visible pixels "
            f"{gate['ridge_loss']:.3f}, the mean's {gate['mean_loss']:.3f}"
            + (f": {BELOW}, as training it does not count" if is_below else "")
        )
    pixels, pca = (named.get(f"baselines {baseline}:linear") for baseline in ("pixels", "pca"))
    if "linear" in named and pixels is not None and pca is not None:
        best, is_above = max(pixels, pca), named["linear"] > max(pixels, pca)
        sentences.append(
            f"its linear probe is {'above' if is_above else 'not above'} the better of raw pixels and PCA "
            f"({100 * named['linear']:.1f} and {100 * best:.1f} %)"
            + (
                ""
                if is_above
                else ", so it shows that everything runs, not that anything useful was learned"
            )
        )
    return "; ".join(sentences) and f"This run: {'; '.join(sentences)}. One seed ranks nothing."


def tier(
    by_label: Mapping[str, RowRecords], preset: str, untrained: Collection[str] = ()
) -> str | None:
    """Reason why a table is below the gate as a whole; unset if it is informative.

    `untrained`: labels of rows whose pre-training does not count.
    """
    primary = primary_measure(preset)
    if primary is None:
        return f"preset {preset} declares no primary measure: plumbing, not a finding"
    has_encoders = any(row.is_pretrained and row.values(primary) for row in by_label.values())
    if not has_encoders:
        return f"no record of {primary}, its primary measure"
    image_baselines = [row for row in by_label.values() if row.is_fixed_image]
    measure = primary if any(row.values(primary) for row in image_baselines) else "linear"
    means = {
        label: sum(values.values()) / len(values)
        for label, row in by_label.items()
        if (values := row.values(measure))
    }
    baselines = {label: means[label] for label in means if by_label[label].is_fixed_image}
    encoders = {
        label: mean
        for label, mean in means.items()
        if by_label[label].is_pretrained and label not in untrained
    }
    if len(baselines) < 2:
        return f"no {measure} of raw pixels and PCA to compare with"
    if not encoders:
        return f"no {measure} of an encoder whose pre-training counts"
    best = max(encoders, key=encoders.__getitem__)
    above = [label for label, value in baselines.items() if value >= encoders[best]]
    if above:
        return f"no encoder is above {' and '.join(sorted(above))} on {measure} ({best} {100 * encoders[best]:.1f} %)"
    return None


def _is_missing(row: RowRecords) -> bool:
    """True for a declared row of an encoder without any record; `scratch` has no encoder."""
    needs_encoder = any(PROTOCOLS[name].needs_encoder for name in row.protocols)
    return needs_encoder and not row.is_baseline and not row.entries


def _undeclared_seeds(rows: Iterable[RowRecords]) -> set[int]:
    """Seeds that somebody added, who may have stopped when the table looked well (rule 5)."""
    return {entry.record.seed for row in rows for entry in row.entries} - {
        seed for row in rows for seed in row.declared
    }


def exploratory(by_label: Mapping[str, RowRecords]) -> str:
    """Reason why a table ranks nothing whatever its numbers are; empty if it may rank."""
    rows = [row for row in by_label.values() if row.is_pretrained or _is_missing(row)]
    facts = [entry.record.data for row in rows for entry in row.entries]
    seeds = [len({entry.record.seed for entry in row.entries}) for row in rows]
    reasons = []
    if seeds and min(seeds) < RANKING_SEEDS:
        reasons.append(
            f"with {span(seeds)} seed{'s' * (max(seeds) != 1)} a row where a ranking needs {RANKING_SEEDS}"
        )
    if undeclared := sorted(_undeclared_seeds(rows)):
        reasons.append(
            f"with seeds that the benchmark does not declare ({', '.join(map(str, undeclared))})"
        )
    if any(data.limited for data in facts):
        reasons.append("on limited data")
    if any(data.split != "test" for data in facts):
        reasons.append("on a slice of the training images")
    return ", ".join(reasons)
