"""The figures of a benchmark, made from records only, written next to them as PNG, SVG and PDF.

`figure`: accuracy along the quantity that the grid varies (see `grid_figure`). Where several targets are compared
also `pareto` and `compute`, accuracy against time and FLOPs, and `curves`, the learning curves (see `target_figure`).
Each PNG is stamped with the records that it was drawn from (see `stamp`).
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mim_bench.analysis.figures.along_grid import along_grid
from mim_bench.analysis.figures.by_target import compares_targets, learning, pareto
from mim_bench.analysis.figures.diagnose import TABLES, draw_diagnoses
from mim_bench.analysis.figures.panel import save, style
from mim_bench.config.benchmark import Benchmark, at_preset, load_benchmark
from mim_bench.errors import UserError
from mim_bench.records import comparability, png_stamp, swept
from mim_bench.records.store import CellRecord, benchmark_records, home


def draw(
    name: str, preset: str, results: Path = Path("results"), overrides: Sequence[str] = ()
) -> list[Path]:
    """Writes every figure that a benchmark has next to its records."""
    name, preset, overrides = swept.recall(name, preset, results, overrides)
    benchmark, short = at_preset(load_benchmark(name), preset), Path(name).stem
    if benchmark.figure is None and not compares_targets(benchmark):
        raise UserError(f"benchmark '{short}' has no figure; its table is `table {short}`")
    entries = benchmark_records(name, preset, results, overrides)
    comparability.check(entries)
    folder = home(name, preset, results)
    with style():
        figures = compose(benchmark, entries)
        if not figures:
            raise UserError(
                f"the records in {folder / 'records'} have nothing to draw; "
                f"`sweep {short} --preset {preset}` runs the protocols that are missing"
            )
        records = png_stamp.of_records(entry.record for entry in entries)
        paths = [
            path
            for stem, figure in figures.items()
            for path in save(figure, folder / stem, records)
        ]
    diagnoses = results / "diagnose" / f"{Path(preset).stem}.csv"
    if short in TABLES and diagnoses.is_file():  # its right half shows these encoders
        paths += draw_diagnoses(diagnoses, preset, results)
    return paths


def compose(benchmark: Benchmark, entries: Sequence[CellRecord]) -> dict[str, Figure]:
    """File stem -> figure, of a benchmark at its preset; inside `curve.style()`."""
    figures: dict[str, Figure | None] = {}
    if benchmark.figure is not None:
        figures["figure"] = along_grid(benchmark, benchmark.figure, entries)
    if compares_targets(benchmark):
        figures |= {
            figure_name: pareto(benchmark, entries, figure_name)
            for figure_name in ("pareto", "compute")
        }
        figures["curves"] = learning(benchmark, entries)
    return {stem: figure for stem, figure in figures.items() if figure is not None}
