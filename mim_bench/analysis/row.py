"""What the records of one row say: numbers over seeds, answers to every test image, costs.

Everything here is by column: the name of a measure (`mim_bench.records.measure`) or of a cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mim_bench.config.benchmark import Benchmark, Cell
from mim_bench.config.protocol import PROTOCOLS, ProtocolName
from mim_bench.records import store
from mim_bench.records.measure import Measure, measures
from mim_bench.records.record import Record
from mim_bench.records.store import Found

COSTS = {
    "step_ms": ("step ms", False, False),
    "target_share": ("target's share %", False, False),
    "peak_gb": ("peak GB", False, False),
    "flops_ratio": ("FLOPs ×", False, False),
    "speed_up": ("speed-up ×", False, True),
    "hours": ("hours", False, False),
}
"""Cost -> heading, whether it is an accuracy, whether higher is better; see `benchmark.CostName`."""


@dataclass
class Line:
    """What is known of a row before it is made."""

    label: str
    cell: Cell
    protocols: set[ProtocolName]
    declared: list[int]
    """Seeds."""
    found: list[Found] = field(default_factory=list)

    @cached_property
    def measured(self) -> dict[str, dict[int, tuple[Measure, Found]]]:
        """Column -> seed -> number and where it comes from; `scratch` stands below `finetune`."""
        named: dict[str, dict[int, tuple[Measure, Found]]] = {}
        for one in self.found:
            for key, measure in measures(one.record).items():
                column = _column(key)
                named.setdefault(column, {})[one.record.seed] = (measure, one)
        return named

    def values(self, column: str) -> dict[int, float]:
        """Seed -> number."""
        return {seed: one.value for seed, (one, _) in sorted(self.measured.get(column, {}).items())}

    def answers(self, column: str) -> dict[int, np.ndarray]:
        """Seed -> (N,) correctness of each test image."""
        return {
            seed: measure.of_images(store.correct(found.path))
            for seed, (measure, found) in self.measured.get(column, {}).items()
        }

    def record(self, protocol: str) -> Record | None:
        """Its first record of a protocol."""
        return next((o.record for o in self.found if o.record.protocol == protocol), None)


def lines(benchmark: Benchmark, todo: Sequence[Cell], found: Sequence[Found]) -> dict[str, Line]:
    """Label -> row in the making; what runs in a seed's first cell alone has a row of its own."""
    found_lines: dict[str, Line] = {}
    seeds = list(benchmark.seeds)
    for protocol in benchmark.first_only:
        found_lines[protocol] = Line(protocol, todo[0], {protocol}, seeds)
    for cell in todo:
        protocols = set(benchmark.protocols)
        found_lines.setdefault(cell.label, Line(cell.label, cell, protocols, seeds))
    for one in found:
        is_shared = one.record.protocol in benchmark.first_only
        found_lines[one.record.protocol if is_shared else one.cell.label].found.append(one)
    return found_lines


def _column(key: str) -> str:
    """The measure in whose column another stands, as its protocol's spec says."""
    spec = PROTOCOLS.get(key)
    return spec.column if spec and spec.column else key


def cost(key: str, line: Line, reference: Line) -> dict[int, float]:
    """Seed -> cost; ratios are to the reference row of the same seed."""
    if key == "fit_s":
        return {
            one.record.seed: one.record.pretrain.fit["fit_seconds"]
            for one in line.found
            if one.record.pretrain and "fit_seconds" in one.record.pretrain.fit
        }
    if key == "epochs_to_scratch":
        return _epochs_to_scratch(line, reference)
    steps, of_reference = line.values("step_s"), reference.values("step_s")
    if key == "step_ms":
        return {seed: 1000 * step for seed, step in steps.items()}
    if key == "peak_gb":
        return line.values("peak_gb")
    if key == "target_share":
        return {seed: 100 * own / steps[seed] for seed, own in line.values("target_s").items()}
    if key == "speed_up":
        return {
            seed: of_reference[seed] / step for seed, step in steps.items() if seed in of_reference
        }
    if key == "flops_ratio":
        theirs = reference.values("step_flops")
        mine = line.values("step_flops")
        return {seed: flops / theirs[seed] for seed, flops in mine.items() if seed in theirs}
    record = line.record("speed")
    if record is None:
        return {}
    images = record.config["pretrain"]["epochs"] * record.data.num_train_images
    return {seed: images / each / 3600 for seed, each in line.values("images_per_s").items()}


def _epochs_to_scratch(line: Line, reference: Line) -> dict[int, float]:
    """Seed -> first epoch of fine-tuning whose held-out accuracy is that of the last epoch from scratch."""
    goals = {
        one.record.seed: one.record.curves["model"][-1]
        for one in reference.found
        if one.record.protocol == "scratch" and "model" in one.record.curves
    }
    found = {}
    for one in line.found:
        curve = one.record.curves.get("model", ())
        goal = goals.get(one.record.seed)
        if one.record.protocol == "finetune" and goal is not None:
            reached = [epoch for epoch, value in enumerate(curve, start=1) if value >= goal]
            if reached:
                found[one.record.seed] = float(reached[0])
    return found
