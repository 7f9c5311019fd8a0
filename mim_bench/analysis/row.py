"""The records of one row of a table: numbers over seeds, correctness on every test image, costs.

Everything here is by column: the name of a measure (`mim_bench.records.measure`) or of a cost.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from mim_bench.config.benchmark import Benchmark
from mim_bench.config.cells import Cell
from mim_bench.config.protocol import PROTOCOLS, ProtocolName
from mim_bench.config.target_params import BUILT_IN
from mim_bench.records.measure import Measure
from mim_bench.records.record import Metric, Record
from mim_bench.records.store import CellRecord

COSTS = {
    "step_ms": ("step ms", False, False),
    "target_share": ("target's share %", False, False),
    "peak_gb": ("peak GB", False, False),
    "flops_ratio": ("FLOPs ×", False, False),
    "speed_up": ("speed-up ×", False, True),
    "hours": ("hours", False, False),
}
"""Cost -> heading, whether it is a fraction, whether higher is better; see `benchmark.CostName`."""


BASELINES = "baselines"
"""The protocol whose record becomes rows of its own."""


@dataclass
class RowRecords:
    """All records of one row, and the seeds and protocols that it should have."""

    label: str
    cell: Cell
    protocols: set[ProtocolName]
    declared: list[int]
    """Seeds."""
    entries: list[CellRecord] = field(default_factory=list)
    is_baseline: bool = False
    """True for a row that needs no pre-training and no seeds."""
    is_fixed_image: bool = False
    """True for the baselines that an encoder has to beat whatever its target: raw pixels and PCA."""

    has_seeds: bool = True
    """False for a baseline that is the same at every seed of its records."""

    @cached_property
    def measured(self) -> dict[str, dict[int, tuple[Measure, CellRecord]]]:
        """Column -> seed -> number and where it comes from; `scratch` is in the column of `finetune`."""
        by_name: dict[str, dict[int, tuple[Measure, CellRecord]]] = {}
        for entry in self.entries:
            for key, measure in entry.measures.items():
                column = _column(key)
                by_name.setdefault(column, {})[entry.record.seed] = (measure, entry)
        return by_name

    @property
    def is_pretrained(self) -> bool:
        """True for the row of an encoder with its pre-training; neither a baseline nor `scratch` has one."""
        return not self.is_baseline and any(entry.record.pretrain for entry in self.entries)

    def values(self, column: str) -> dict[int, float]:
        """Seed -> number."""
        return {
            seed: measure.value
            for seed, (measure, _) in sorted(self.measured.get(column, {}).items())
        }

    def correctness(self, column: str) -> dict[int, np.ndarray]:
        """Seed -> (N,) correctness of each test image."""
        return {
            seed: measure.of_images(entry.correct(measure.readouts))
            for seed, (measure, entry) in self.measured.get(column, {}).items()
        }

    def record(self, protocol: str) -> Record | None:
        """First record of a protocol in the row."""
        return next(
            (entry.record for entry in self.entries if entry.record.protocol == protocol), None
        )


def records_by_row(
    benchmark: Benchmark, grid_cells: Sequence[Cell], entries: Sequence[CellRecord]
) -> dict[str, RowRecords]:
    """Label -> records of that row; what runs in a seed's first cell alone has a row of its own."""
    seeds = list(benchmark.seeds)
    shared_rows = {
        (label := PROTOCOLS[name].title): RowRecords(label, grid_cells[0], {name}, seeds)
        for name in benchmark.first_only
        if name != BASELINES
    }
    # the reference comes first, what does not depend on the grid behind it
    by_label = {k: row for k, row in shared_rows.items() if k == benchmark.reference}
    for cell in grid_cells:
        protocols = set(benchmark.protocols)
        by_label.setdefault(cell.label, RowRecords(cell.label, cell, protocols, seeds))
    by_label |= shared_rows
    for entry in entries:
        is_shared = entry.record.protocol in benchmark.first_only
        if is_shared and entry.record.protocol == BASELINES:
            continue
        shared = PROTOCOLS[entry.record.protocol].title
        by_label[shared if is_shared else entry.cell.label].entries.append(entry)
    return by_label | baseline_rows(entries)


def baseline_rows(entries: Sequence[CellRecord]) -> dict[str, RowRecords]:
    """Label -> a row for each baseline: raw pixels and PCA once, for they depend on neither seed nor grid; a target
    as a feature once a seed, for its fit may be the seed's.

    Of a record of `baselines` each probe's accuracy becomes a record of that probe, so that it stands in its column.
    """
    rows: dict[str, RowRecords] = {}
    for entry in entries:
        spec = PROTOCOLS[entry.record.protocol]
        for metric in entry.record.metrics:
            if spec.baseline_readout and metric.readout == spec.baseline_readout:
                _add(rows, "raw pixels", entry, spec.name, metric, is_fixed_image=True)
            if spec.name != BASELINES:
                continue
            baseline, _, probe = metric.readout.partition(":")
            width = entry.record.config["model"]["embed_dim"]
            label = {"pixels": "raw pixels", "pca": f"PCA, {width} components"}.get(
                baseline, f"{entry.record.target} as a feature"
            )
            _add(rows, label, entry, probe, metric, is_fixed_image=baseline in ("pixels", "pca"))
    for row in rows.values():
        row.has_seeds = not _is_same_in_all_seeds(row)
        if not row.has_seeds:
            first = row.entries[0].record.seed
            row.entries = [entry for entry in row.entries if entry.record.seed == first]
    return rows


def _is_same_in_all_seeds(row: RowRecords) -> bool:
    """True if a baseline has the same numbers at every seed: by its definition, or known from two seeds or more."""
    records = [entry.record for entry in row.entries]
    params = BUILT_IN.get(records[0].config["target"]["class_path"])
    if params is not None and not params.depends_on_seed:
        return True
    values = {(record.protocol, record.metrics[0].value) for record in records}
    has_several = len({record.seed for record in records}) > 1
    return row.is_fixed_image or (
        has_several and len(values) == len({record.protocol for record in records})
    )


def _add(
    rows: dict[str, RowRecords],
    label: str,
    entry: CellRecord,
    protocol: str,
    metric: Metric,
    *,
    is_fixed_image: bool,
) -> None:
    """Puts a number into a baseline's row, as a record of its protocol, unless it has one that counts for it."""
    row = RowRecords(label, entry.cell, set(), [], is_baseline=True, is_fixed_image=is_fixed_image)
    row = rows.setdefault(label, row)
    counted = {
        (existing.record.protocol, is_fixed_image or existing.record.seed)
        for existing in row.entries
    }
    if (protocol, is_fixed_image or entry.record.seed) not in counted:
        changes = {"protocol": protocol, "metrics": (metric,), "declared_readout": metric.readout}
        row.entries.append(replace(entry, record=entry.record.model_copy(update=changes)))


def span(numbers: Iterable[int]) -> str:
    """`5`, or `1 to 3` where they differ."""
    distinct = sorted(set(numbers))
    return str(distinct[0]) if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"


def _column(key: str) -> str:
    """Column of a measure: its own, or that of another measure as its protocol's spec says."""
    spec = PROTOCOLS.get(key)
    return spec.column if spec and spec.column else key


def cost(key: str, row: RowRecords, reference: RowRecords) -> dict[int, float]:
    """Seed -> cost; ratios are to the reference row of the same seed."""
    if key == "fit_s":
        return {
            entry.record.seed: entry.record.pretrain.fit["fit_seconds"]
            for entry in row.entries
            if entry.record.pretrain and "fit_seconds" in entry.record.pretrain.fit
        }
    if key == "total_tflops":
        trained = {seed: flops / 1e12 for seed, flops in row.values("train_flops").items()}
        return total_tflops(row.entries) or trained
    if key == "epochs_to_scratch":
        return _epochs_to_scratch(row, reference)
    steps, of_reference = row.values("step_s"), reference.values("step_s")
    if key == "step_ms":
        return {seed: 1000 * step for seed, step in steps.items()}
    if key == "peak_gb":
        return row.values("peak_gb")
    if key == "target_share":
        return {
            seed: 100 * target_s / steps[seed] for seed, target_s in row.values("target_s").items()
        }
    if key == "speed_up":
        return {
            seed: of_reference[seed] / step for seed, step in steps.items() if seed in of_reference
        }
    if key == "flops_ratio":
        reference_flops = reference.values("step_flops")
        own_flops = row.values("step_flops")
        return {
            seed: flops / reference_flops[seed]
            for seed, flops in own_flops.items()
            if seed in reference_flops
        }
    record = row.record("speed")
    if record is None:
        return {}
    images = record.config["pretrain"]["epochs"] * record.data.num_train_images
    return {seed: images / rate / 3600 for seed, rate in row.values("images_per_s").items()}


def total_tflops(entries: Sequence[CellRecord]) -> dict[int, float]:
    """Seed -> 10^12 FLOPs of pre-training, target, teacher and fit included."""
    return {
        entry.record.seed: (facts.flops + facts.fit.get("fit_flops", 0.0)) / 1e12
        for entry in entries
        if (facts := entry.record.pretrain)
        and facts.flops
        and ("fit_seconds" not in facts.fit or "fit_flops" in facts.fit)
    }


def _epochs_to_scratch(row: RowRecords, reference: RowRecords) -> dict[int, float]:
    """Seed -> first epoch of fine-tuning whose held-out accuracy is that of the last epoch from scratch."""
    goals = {
        entry.record.seed: entry.record.curves["model"][-1]
        for entry in reference.entries
        if entry.record.protocol == "scratch" and "model" in entry.record.curves
    }
    epochs = {}
    for entry in row.entries:
        curve = entry.record.curves.get("model", ())
        goal = goals.get(entry.record.seed)
        if entry.record.protocol == "finetune" and goal is not None:
            reached = [epoch for epoch, value in enumerate(curve, start=1) if value >= goal]
            if reached:
                epochs[entry.record.seed] = float(reached[0])
    return epochs
