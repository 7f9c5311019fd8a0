"""The report: every table, figure and picture of `results/` on one page that needs nothing but itself.

No network and no other file: figures are put in as SVG, pictures as base64, style and script inline, and
the page's own policy forbids the browser to load anything else. The same records make the same page, byte
for byte. Damaged results do not stop it: their error is printed in their place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mim_bench.analysis import gates, headline, render, write
from mim_bench.analysis import table as tables
from mim_bench.analysis.external import external_grid
from mim_bench.analysis.figures.color import look_numbers
from mim_bench.analysis.grid import Grid
from mim_bench.analysis.report import provenance
from mim_bench.analysis.report.comparison import Comparison, comparisons, ranks
from mim_bench.analysis.report.diagnoses import LEGEND, diagnosed
from mim_bench.analysis.report.inline import (
    FIGURES,
    Image,
    cell_html,
    download,
    image,
    image_files,
    inline,
)
from mim_bench.analysis.report.provenance import RowOrigin
from mim_bench.analysis.table import Table
from mim_bench.config import recipe
from mim_bench.config.benchmark import Benchmark, load_benchmark
from mim_bench.errors import UserError
from mim_bench.files import check_folder, write_text
from mim_bench.records import store, swept
from mim_bench.records.record import Record


@dataclass(frozen=True)
class CaptionedGrid:
    """A table of the page with its caption."""

    caption: str
    grid: Grid


@dataclass
class PresetSection:
    """A benchmark at a preset, or the reason why it is not shown."""

    preset: str
    anchor: str
    errors: list[str] = field(default_factory=list)
    headline: str = ""
    main: CaptionedGrid | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    ranks: Markup | None = None
    """Places of the rows under each measure."""
    readouts: CaptionedGrid | None = None
    comparison_with_published: CaptionedGrid | None = None
    """Published numbers next to the measured ones."""
    published: CaptionedGrid | None = None
    external: CaptionedGrid | None = None
    """Encoders from outside that were evaluated here."""
    settings: CaptionedGrid | None = None
    """Fields in which two rows differ."""
    shared: list[tuple[str, str]] = field(default_factory=list)
    """Settings of all rows."""
    origins: list[RowOrigin] = field(default_factory=list)
    downloads: list[Markup] = field(default_factory=list)
    notes: list[Markup] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class BenchmarkSection:
    """A benchmark with its presets."""

    name: str
    benchmark: Benchmark
    sections: list[PresetSection]


@dataclass
class PresetHeadline:
    """Headline at one preset: whether targets matter."""

    preset: str
    sentence: str


def write_report(results: Path = Path("results"), warn: Callable[[str], object] = print) -> Path:
    """Writes `report.html` over everything in a folder of results; `warn` is called with each damage."""
    check_folder(results)
    if not results.is_dir():
        raise UserError(
            f"no folder {results}; `sweep targets` makes records, `report` a page of them"
        )
    first = [
        name for name in (headline.BENCHMARK, "mask_ratio") if name in recipe.names("benchmarks")
    ]
    benchmarks, missing = [], []
    for name in dict.fromkeys([*first, *recipe.names("benchmarks"), *swept.names(results)]):
        benchmark = _benchmark_section(name, results, warn)
        (benchmarks if benchmark.sections else missing).append(benchmark)
    benchmarks.sort(
        key=lambda benchmark: not any(section.records for section in benchmark.sections)
    )
    for folder in sorted(results.iterdir()):
        if _presets(folder) and folder.name not in [benchmark.name for benchmark in benchmarks]:
            warn(f"{folder}: left out, as no benchmark has that name")
    records = [
        record
        for benchmark in benchmarks
        for section in benchmark.sections
        for record in section.records
    ]
    path = results / "report.html"
    page = _page(
        benchmarks=benchmarks, missing=missing, headlines=_headlines(benchmarks),
        diagnosed=diagnosed(results, warn), legend=LEGEND, **_provenance(records),
    )  # fmt: skip
    write_text(path, page)
    return path


def _page(**content: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.jinja")
    return template.render(content, html=cell_html)


def _provenance(records: Sequence[Record]) -> dict[str, Any]:
    commits = {r.code.commit[:12] + (" (dirty)" if r.code.dirty else "") for r in records}
    newest = max((record.started for record in records), default="")
    return {
        "newest": newest,
        "commits": sorted(commits),
        "num_records": len({(record.run_id, record.protocol) for record in records}),
    }


def _presets(folder: Path) -> list[str]:
    """Presets that have records below a benchmark's folder."""
    return sorted({path.parent.parent.name for path in folder.glob("*/records/*.json")})


# ---- a benchmark ----


def _benchmark_section(name: str, results: Path, warn: Callable[[str], object]) -> BenchmarkSection:
    benchmark = load_benchmark(swept.recall(name, "", results).name)
    presets = _presets(results / name)
    if benchmark.division == "published":
        presets = presets or ["tiny"]  # without external records the same at every preset
    sections = [_preset_section(name, benchmark, preset, results) for preset in presets]
    for section in sections:
        for error in section.errors:
            warn(f"{name}, preset {section.preset}: {error}")
    return BenchmarkSection(name, benchmark, sections)


def _preset_section(name: str, benchmark: Benchmark, preset: str, results: Path) -> PresetSection:
    section = PresetSection(preset, f"{name}-{preset}")
    try:
        _fill(
            section,
            tables.build(name, preset, results),
            swept.recall(name, preset, results).overrides,
        )
    except UserError as error:
        section.errors.append(str(error))
    for path in image_files(store.home(name, preset, results)):
        heading = FIGURES.get(path.stem, path.stem.replace("_", " "))
        try:
            alt = f"{benchmark.title}, preset {preset}: {heading}"
            section.images.append(image(path, alt, f"{section.anchor}-{path.stem}"))
        except UserError as error:
            section.errors.append(str(error))
    return section


def _fill(section: PresetSection, table: Table, overrides: Sequence[str]) -> None:
    title = f"{table.benchmark.title}, preset {section.preset}"
    section.records = table.records
    if table.external:
        section.external = CaptionedGrid(
            f"{title}: {render.EXTERNAL}", external_grid(table.external)
        )
        section.notes = [inline(render.EXTERNAL_NOTE)]
    if table.published_only:
        grid = render.published_grid(table)
        section.published = CaptionedGrid(f"{table.benchmark.title}: published rows", grid)
    if not table.rows:
        return
    section.main = CaptionedGrid(title, render.main_grid(table, brief=True))
    section.headline = headline.sentence(table)
    section.notes = [inline(note) for note in render.notes(table)]
    looks = look_numbers(
        {
            label: row.entries[0].record.target
            for label, row in table.by_label.items()
            if row.is_pretrained
        }
    )
    section.comparisons = comparisons(table, looks)
    section.ranks = ranks(table, section.comparisons, looks)
    section.readouts = _captioned(f"{title}: every readout", render.readout_grid(table))
    section.comparison_with_published = _captioned(
        f"{title}: published and measured", render.published_and_measured(table)
    )
    section.settings = _captioned(f"{title}: settings that differ", provenance.settings_grid(table))
    section.shared = provenance.shared_settings(table)
    section.origins = provenance.origins(table, section.anchor, overrides)
    section.downloads = _downloads(section.anchor, table)


def _captioned(caption: str, grid: Grid) -> CaptionedGrid | None:
    return CaptionedGrid(caption, grid) if grid.rows else None


def _downloads(name: str, table: Table) -> list[Markup]:
    """The table for programs, for papers, and the correctness image by image on the first measure."""
    links = [
        download(write.csv(table), f"{name}.csv", "table as CSV"),
        download(write.tex(table), f"{name}.tex", "as LaTeX"),
    ]
    key = gates.primary_measure(table.preset) or next(iter(table.rows[0].values), "")
    content = write.correct_csv(table, key)
    if content:
        links.append(
            download(content, f"{name}-{key}-correct.csv", "correctness image by image (CSV)")
        )
    return links


def _headlines(benchmarks: Sequence[BenchmarkSection]) -> list[PresetHeadline]:
    """One sentence a preset; plumbing has none where there is better."""
    sections = [
        section
        for benchmark in benchmarks
        if benchmark.name == headline.BENCHMARK
        for section in benchmark.sections
    ]
    informative = [
        section
        for section in sections
        if section.headline and gates.primary_measure(section.preset)
    ]
    sections = informative or sections
    return [
        PresetHeadline(section.preset, section.headline) for section in sections if section.headline
    ]
