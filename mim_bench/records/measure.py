"""Measures: the numbers that a record contributes to tables and figures, by name.

A record holds metrics for each readout, draw of labels or number of trained blocks. A measure is one
column: `linear` is the declared readout's accuracy, `linear @ middle/cls` another readout's,
`low_shot 1%` the mean over the draws of labels, `partial 0.5` one point of MAE's Figure 9, `step_s` a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

import numpy as np

from mim_bench.records.record import FRACTIONS, Metric, Record


@dataclass(frozen=True)
class Measure:
    """One number of one record."""

    name: str
    metrics: tuple[Metric, ...]
    """Averaged; more than one where labels were drawn several times."""
    control: float | None
    """The same for the encoder at its random initial weights, where that was evaluated."""

    @property
    def value(self) -> float:
        return fmean(metric.value for metric in self.metrics)

    @property
    def stderr(self) -> float:
        """Over test images; of several draws of labels the greatest."""
        return max(metric.stderr for metric in self.metrics)

    @property
    def readouts(self) -> list[str]:
        """Readouts of the measure's metrics."""
        return [metric.readout for metric in self.metrics]

    @property
    def is_accuracy(self) -> bool:
        """True for a fraction of test images."""
        return self.metrics[0].name == "top1"

    @property
    def is_fraction(self) -> bool:
        """True for what is printed in per cent: an accuracy, or a mean IoU."""
        return self.metrics[0].name in FRACTIONS

    @property
    def higher_is_better(self) -> bool:
        return self.metrics[0].higher_is_better

    def of_images(self, correct: Mapping[str, np.ndarray]) -> np.ndarray:
        """Correctness by readout (see `record.read_correct`) -> (N,) float, of this measure."""
        return np.mean([correct[metric.readout] for metric in self.metrics], axis=0)


def measures(record: Record) -> dict[str, Measure]:
    """Measures of a record, the declared numbers first."""

    def name_of(metric: Metric) -> str:
        return _name(metric.name, metric.readout, record.protocol, record.declared_readout)

    grouped: dict[str, list[Metric]] = {}
    for metric in record.metrics:
        grouped.setdefault(name_of(metric), []).append(metric)
    control: dict[str, list[float]] = {}
    for metric in record.control:
        control.setdefault(name_of(metric), []).append(metric.value)
    by_name = {
        name: Measure(name, tuple(metrics), fmean(control[name]) if name in control else None)
        for name, metrics in grouped.items()
    }
    return dict(sorted(by_name.items(), key=lambda item: "@" in item[0]))


@lru_cache  # a table has thousands of records of the same
def _name(metric: str, readout_text: str, protocol: str, declared: str) -> str:
    """The measure that a metric of that name, read out there, belongs to."""
    if metric not in FRACTIONS:
        return metric
    readout, _, suffix = readout_text.partition(" ")  # `last/patch_mean 1% draw 0`
    if "/" in readout:
        fraction = f" {suffix.partition(' draw')[0]}" if suffix else ""
        return protocol + fraction + ("" if readout == declared else f" @ {readout}")
    if protocol == "baselines":  # under one probe, `pixels:linear`
        return f"{protocol} {readout}"
    if readout.startswith("blocks="):
        return f"{protocol} {readout.removeprefix('blocks=')}"
    return protocol
