"""Is everything that lies here what it says it is? Recipes, presets, benchmarks, published rows, records.

    python -m mim_bench validate

Every fault is named with its file; nothing stops at the first.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from mim_bench.analysis import tuning
from mim_bench.analysis.external import external_rows
from mim_bench.analysis.published.match import published_rows
from mim_bench.config import recipe
from mim_bench.config.benchmark import Benchmark, load_benchmark
from mim_bench.config.cells import cells
from mim_bench.config.resolve import load_config
from mim_bench.errors import UserError, suggest
from mim_bench.files import check_folder
from mim_bench.records import comparability, run_folder, store, swept


def validate(
    results: Path, out: Path | None = None, *, verify: bool = False
) -> tuple[list[str], list[str]]:
    """Lines that count the checks of each kind, and the faults.

    Args:
        out: folder of run folders, whose files are checked too.
        verify: hash each file of a run, rather than look at its size.
    """
    check_folder(results)
    checked: list[str] = []
    faults: list[str] = []

    def run(subject: str, checks: Iterator[tuple[str, Callable[[], object]]]) -> None:
        count = 0
        for name, check in checks:
            count += 1
            try:
                check()
            except UserError as error:
                faults.append(f"{name}: {error}")
        checked.append(f"{count} {subject}")

    run("target recipes", _recipes())
    run("presets", _presets())
    run("checks of benchmark files, each at every preset", _benchmarks(results))
    run("folders of records", _records(results))
    if out is not None:
        run("run folders", _runs(out, verify))
    return checked, faults


def _recipes() -> Iterator[tuple[str, Callable[[], object]]]:
    for name in recipe.names("targets"):
        yield f"target {name}", lambda name=name: load_config(name)


def _presets() -> Iterator[tuple[str, Callable[[], object]]]:
    for name in recipe.names("preset"):
        yield f"preset {name}", lambda name=name: load_config("norm_pixel", name)


def _benchmarks(results: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    for name in recipe.names("benchmarks"):
        yield f"benchmark {name}", lambda name=name: published_rows(load_benchmark(name))
        for preset in recipe.names("preset"):
            yield f"benchmark {name} at {preset}", lambda n=name, p=preset: _distinct(n, p)
        yield f"benchmark {name}, what is tuned", lambda name=name: tuning.check(name, results)


def _distinct(name: str, preset: str) -> None:
    """The preset is known, and no two cells are the same run."""
    benchmark: Benchmark = load_benchmark(name)
    for scale in benchmark.at:
        if scale not in recipe.names("preset"):
            raise UserError(f"at.{scale}: no such preset; {suggest(scale, recipe.names('preset'))}")
    first_label: dict[str, str] = {}
    for cell in cells(name, preset) if benchmark.has_runs_at(preset) else ():
        first = first_label.setdefault(cell.config.hash, cell.label)
        if first != cell.label:
            raise UserError(f"rows '{first}' and '{cell.label}' are the same run")


def _runs(out: Path, verify: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    for path in sorted(out.glob("*/manifest.json")):
        yield str(path.parent), lambda p=path: run_folder.check(p.parent, content=verify)
        yield str(path.parent), lambda p=path: run_folder.read_config(p.parent)


def _records(results: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    for folder in sorted(results.glob("*/*/records")):
        name, preset = folder.parts[-3], folder.parts[-2]
        yield str(folder), lambda n=name, p=preset: _folder(n, p, results)


def _folder(name: str, preset: str, results: Path) -> None:
    sweep = swept.recall(name, preset, results)
    for category, value, file in (
        ("benchmarks", name, sweep.name),
        ("preset", preset, sweep.preset),
    ):
        if value not in recipe.names(category) and not file.endswith(".toml"):
            raise UserError(
                f"no {category.removesuffix('s')} '{value}'; {suggest(value, recipe.names(category))}"
            )
    name, preset, overrides = sweep
    if load_benchmark(name).division == "published":
        external_rows(name, preset, results, [])
        return
    comparability.check(store.benchmark_records(name, preset, results, overrides))
