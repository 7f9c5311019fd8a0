"""The columns of a table: the primary measure, the other accuracies, those of other readouts, costs."""

from collections.abc import Mapping
from dataclasses import dataclass

from mim_bench.analysis.row import COSTS, RowRecords, cost
from mim_bench.config.benchmark import Benchmark
from mim_bench.config.protocol import PROTOCOLS


@dataclass(frozen=True)
class Column:
    """One column of numbers."""

    key: str
    """Name of a measure, or of a cost."""
    heading: str
    is_fraction: bool
    """Printed in per cent: an accuracy or a mean IoU."""
    higher_is_better: bool = True


def is_compared(key: str) -> bool:
    """True if the differences of a measure to the reference row are printed."""
    protocol, _, suffix = key.partition(" ")
    spec = PROTOCOLS.get(protocol)
    return spec is not None and spec.is_compared and "@" not in suffix


def columns_of(
    benchmark: Benchmark, by_label: Mapping[str, RowRecords], primary: str | None
) -> list[Column]:
    """The primary measure, accuracies in the order of importance, those of other readouts last, then costs."""
    order = list(PROTOCOLS)
    is_fraction = {
        key: next(iter(of_seed.values()))[0].is_fraction
        for line in by_label.values()
        for key, of_seed in line.measured.items()
    }
    keys = [key for key, fraction in is_fraction.items() if fraction and ":" not in key]
    keys.sort(key=lambda key: ("@" in key, key != primary, order.index(key.split()[0])))
    columns = [Column(key, _heading(key), True) for key in keys]
    has_scratch = any("scratch" in line.protocols and line.entries for line in by_label.values())
    if has_scratch and "finetune" in benchmark.protocols:
        columns.append(Column("epochs_to_scratch", "epochs to scratch", False, False))
    if "step_s" in is_fraction:
        columns += [Column(key, *COSTS[key]) for key in benchmark.cost]
    for key, heading in (("total_tflops", "TFLOPs, all"), ("fit_s", "fit s")):
        if any(cost(key, line, line) for line in by_label.values()):
            columns.append(Column(key, heading, False, False))
    return columns


def _heading(key: str) -> str:
    """Heading of an accuracy: `fine-tune %`, `kNN @ last/cls %`, `low-shot (1 % of labels) %`."""
    protocol, _, suffix = key.partition(" ")
    if "%" in suffix:
        return f"{PROTOCOLS[protocol].title} ({suffix.replace('%', ' % of labels')}) %"
    title = PROTOCOLS[protocol].title
    return f"{title} {suffix} %" if suffix else f"{title} %"
