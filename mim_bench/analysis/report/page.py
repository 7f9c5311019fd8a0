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
from mim_bench.analysis.figures.color import NUM_COLORS, color_numbers
from mim_bench.analysis.grid import Grid
from mim_bench.analysis.report import provenance
from mim_bench.analysis.report.comparison import Comparison, comparisons, ranks
from mim_bench.analysis.report.diagnoses import diagnosed
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
class Sheet:
    """A table of the page with its caption."""

    caption: str
    grid: Grid


@dataclass
class Part:
    """A benchmark at a preset, or the reason why it is not shown."""

    preset: str
    anchor: str
    errors: list[str] = field(default_factory=list)
    headline: str = ""
    main: Sheet | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    ranks: Markup | None = None
    """Places of the rows under each measure."""
    readouts: Sheet | None = None
    comparison_with_published: Sheet | None = None
    """Published numbers next to the measured ones."""
    published: Sheet | None = None
    external: Sheet | None = None
    """Encoders from outside that were evaluated here."""
    settings: Sheet | None = None
    """Fields in which two rows differ."""
    shared: list[tuple[str, str]] = field(default_factory=list)
    """Settings of all rows."""
    origins: list[RowOrigin] = field(default_factory=list)
    downloads: list[Markup] = field(default_factory=list)
    notes: list[Markup] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """A benchmark with its presets."""

    name: str
    benchmark: Benchmark
    parts: list[Part]


@dataclass
class Lead:
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
    entries, missing = [], []
    for name in dict.fromkeys([*first, *recipe.names("benchmarks"), *swept.names(results)]):
        entry = _entry(name, results, warn)
        (entries if entry.parts else missing).append(entry)
    entries.sort(key=lambda entry: not any(part.records for part in entry.parts))
    for folder in sorted(results.iterdir()):
        if _presets(folder) and folder.name not in [entry.name for entry in entries]:
            warn(f"{folder}: left out, as no benchmark has that name")
    records = [record for entry in entries for part in entry.parts for record in part.records]
    path = results / "report.html"
    page = _page(
        entries=entries, missing=missing, leads=_leads(entries), diagnosed=diagnosed(results, warn),
        **_provenance(records),
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
        "num_records": len(records),
    }


def _presets(folder: Path) -> list[str]:
    """Presets that have records below a benchmark's folder."""
    return sorted({path.parent.parent.name for path in folder.glob("*/records/*.json")})


# ---- a benchmark ----


def _entry(name: str, results: Path, warn: Callable[[str], object]) -> Entry:
    benchmark = load_benchmark(swept.recall(name, "", results).name)
    presets = _presets(results / name)
    if benchmark.division == "published":
        presets = presets or ["tiny"]  # without external records the same at every preset
    parts = [_part(name, benchmark, preset, results) for preset in presets]
    for part in parts:
        for error in part.errors:
            warn(f"{name}, preset {part.preset}: {error}")
    return Entry(name, benchmark, parts)


def _part(name: str, benchmark: Benchmark, preset: str, results: Path) -> Part:
    part = Part(preset, f"{name}-{preset}")
    try:
        _fill(
            part, tables.build(name, preset, results), swept.recall(name, preset, results).overrides
        )
    except UserError as error:
        part.errors.append(str(error))
    for path in image_files(store.home(name, preset, results)):
        heading = FIGURES.get(path.stem, path.stem.replace("_", " "))
        try:
            alt = f"{benchmark.title}, preset {preset}: {heading}"
            part.images.append(image(path, alt, f"{part.anchor}-{path.stem}"))
        except UserError as error:
            part.errors.append(str(error))
    return part


def _fill(part: Part, table: Table, overrides: Sequence[str]) -> None:
    title = f"{table.benchmark.title}, preset {part.preset}"
    part.records = table.records
    if table.external:
        part.external = Sheet(f"{title}: {render.EXTERNAL}", external_grid(table.external))
        part.notes = [inline(render.EXTERNAL_NOTE)]
    if table.published_only:
        grid = render.published_grid(table)
        part.published = Sheet(f"{table.benchmark.title}: published rows", grid)
    if not table.rows:
        return
    part.main = Sheet(title, render.main_grid(table, brief=True))
    part.headline = headline.sentence(table)
    part.notes = [inline(note) for note in render.notes(table)]
    numbers = color_numbers(list(table.by_label))
    colors = {label: number % NUM_COLORS for label, number in numbers.items()}
    part.comparisons = comparisons(table, colors)
    part.ranks = ranks(table, part.comparisons, colors)
    part.readouts = _sheet(f"{title}: every readout", render.readout_grid(table))
    part.comparison_with_published = _sheet(
        f"{title}: published and measured", render.published_and_measured(table)
    )
    part.settings = _sheet(f"{title}: settings that differ", provenance.settings_grid(table))
    part.shared = provenance.shared_settings(table)
    part.origins = provenance.origins(table, part.anchor, overrides)
    part.downloads = _downloads(part.anchor, table)


def _sheet(caption: str, grid: Grid) -> Sheet | None:
    return Sheet(caption, grid) if grid.rows else None


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


def _leads(entries: Sequence[Entry]) -> list[Lead]:
    """One sentence a preset; plumbing has none where there is better."""
    parts = [part for entry in entries if entry.name == headline.BENCHMARK for part in entry.parts]
    informative = [part for part in parts if part.headline and gates.primary_measure(part.preset)]
    parts = informative or parts
    return [Lead(part.preset, part.headline) for part in parts if part.headline]
