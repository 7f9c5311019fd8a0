"""Two runs against each other: paired difference of every number they share, and how their configs differ.

    python -m mim_bench compare RUN_A RUN_B

A run is a run folder, a run's name below `runs/`, or a run's name among the committed results.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mim_bench.analysis import difference
from mim_bench.analysis.difference import Difference
from mim_bench.config.resolve import validated
from mim_bench.config.run import RunConfig
from mim_bench.errors import UserError, suggest
from mim_bench.records.measure import Measure, measures
from mim_bench.records.record import Record, read, read_correct
from mim_bench.records.run_folder import difference as config_difference


@dataclass(frozen=True)
class Compared:
    """One number of two runs."""

    measure: str
    a: float
    b: float
    difference: Difference | None
    """a minus b, over test images; None for what is no accuracy."""


def records_of(name: str, *, out: Path, results: Path) -> dict[Path, Record]:
    """Path -> record of a run, wherever it lies."""
    for folder in (Path(name), out / name):
        if (folder / "config.json").is_file():
            records = {path: read(path) for path in sorted((folder / "records").glob("*.json"))}
            if not records:
                raise UserError(f"{folder} has no records yet")
            return records
    committed = sorted(results.glob(f"*/*/records/{name}__*.json"))
    records = {path: read(path) for path in committed}
    if not records:
        run_ids = [path.parent.name for path in out.glob("*/config.json")]
        run_ids += [path.name.partition("__")[0] for path in results.glob("*/*/records/*.json")]
        raise UserError(
            f"no run '{name}' here, in '{out}' or in '{results}'; {_near(name, run_ids)}"
        )
    # several benchmarks may hold the same record
    first = {record.protocol: path for path, record in reversed(records.items())}
    return {path: records[path] for path in first.values()}


def _near(name: str, run_ids: Sequence[str]) -> str:
    suggestion = suggest(name, run_ids)
    return suggestion.partition("; allowed")[0] if len(set(run_ids)) > 20 else suggestion


def compare(
    a: dict[Path, Record], b: dict[Path, Record]
) -> tuple[list[Compared], dict[str, tuple[object, object]]]:
    """Every number that both runs have, a minus b, and the fields in which their configs differ."""
    prints = {record.data.fingerprint for records in (a, b) for record in records.values()}
    if len(prints) > 1:
        raise UserError(
            "the two runs were evaluated on different images, so they cannot be compared"
        )
    of_a, of_b = _named(a), _named(b)
    shared = [_compared(name, of_a[name], of_b[name]) for name in of_a if name in of_b]
    if not shared:
        raise UserError("the two runs share no protocol")
    return shared, config_difference(_config(a), _config(b))


def _named(records: dict[Path, Record]) -> dict[str, tuple[Path, Measure]]:
    return {
        name: (path, measure)
        for path, record in records.items()
        for name, measure in measures(record).items()
    }


def _compared(name: str, of_a: tuple[Path, Measure], of_b: tuple[Path, Measure]) -> Compared:
    (path_a, a), (path_b, b) = of_a, of_b
    result = None
    if a.is_accuracy and b.is_accuracy:
        # one run against one run: only the images are drawn anew
        result = difference.paired(
            a.of_images(read_correct(path_a, readouts=a.readouts)),
            b.of_images(read_correct(path_b, readouts=b.readouts)),
        )
    return Compared(name, a.value, b.value, result)


def _config(records: dict[Path, Record]) -> RunConfig:
    return validated(next(iter(records.values())).config)
