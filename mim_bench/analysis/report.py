"""The report: every table, figure and picture of `results/` on one page that needs nothing but itself.

No network and no other file: figures are put in as SVG, pictures as base64, style and script inline, and
the page's own policy forbids the browser to load anything else. The same records make the same page, byte
for byte. Damaged results do not stop it: their error is printed in their place.
"""

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from mim_bench.analysis import headline, render
from mim_bench.analysis import table as tables
from mim_bench.analysis.grid import Grid, TableCell
from mim_bench.analysis.table import Table
from mim_bench.config import recipe
from mim_bench.config.benchmark import Benchmark, load_benchmark
from mim_bench.errors import UserError
from mim_bench.files import write_text
from mim_bench.records import store, swept
from mim_bench.records.record import Record

_FIGURES = {
    "figure": "accuracy along the quantity that the benchmark varies, published curve in grey",
    "pareto": "accuracy against the time of pre-training",
    "curves": "loss of pre-training and accuracy of fine-tuning, epoch by epoch",
    "pictures": "test images, what each target asks for, and what the model answered",
}
"""File stem -> what is seen, in the order of the page; other files come after."""
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Sheet:
    """A table of the page with its caption."""

    caption: str
    grid: Grid


@dataclass(frozen=True)
class Image:
    """A figure or picture, inline."""

    html: Markup
    kind: str
    """`svg` or `png`."""


@dataclass
class Part:
    """A benchmark at a preset, or the reason why it is not shown."""

    preset: str
    anchor: str
    errors: list[str] = field(default_factory=list)
    headline: str = ""
    main: Sheet | None = None
    readouts: Sheet | None = None
    published: Sheet | None = None
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
    """Whether targets matter, at a preset."""

    preset: str
    sentence: str


def write_report(results: Path = Path("results"), warn: Callable[[str], object] = print) -> Path:
    """Writes `report.html` over everything in a folder of results; `warn` is called with each damage."""
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
    for folder in sorted(results.iterdir()):
        if _presets(folder) and folder.name not in [entry.name for entry in entries]:
            warn(f"{folder}: left out, as no benchmark has that name")
    records = [record for entry in entries for part in entry.parts for record in part.records]
    path = results / "report.html"
    page = _page(entries=entries, missing=missing, leads=_leads(entries), **_provenance(records))
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
    template = environment.get_template("report.html.jinja")
    return template.render(content, html=cell_html)


def _provenance(records: Sequence[Record]) -> dict[str, Any]:
    commits = {r.code.commit[:12] + (" (dirty)" if r.code.dirty else "") for r in records}
    newest = max((record.started for record in records), default="")
    return {"newest": newest, "commits": sorted(commits), "num_records": len(records)}


def _presets(folder: Path) -> list[str]:
    """Presets that have records below a benchmark's folder."""
    return sorted({path.parent.parent.name for path in folder.glob("*/records/*.json")})


# ---- a benchmark ----


def _entry(name: str, results: Path, warn: Callable[[str], object]) -> Entry:
    benchmark = load_benchmark(swept.recall(name, "", results).name)
    presets = _presets(results / name)
    if benchmark.division == "published":
        presets = ["tiny"]  # the same at every preset
    parts = [_part(name, benchmark, preset, results) for preset in presets]
    for part in parts:
        for error in part.errors:
            warn(f"{name}, preset {part.preset}: {error}")
    return Entry(name, benchmark, parts)


def _part(name: str, benchmark: Benchmark, preset: str, results: Path) -> Part:
    part = Part(preset, f"{name}-{preset}")
    try:
        _fill(part, tables.build(name, preset, results))
    except UserError as error:
        part.errors.append(str(error))
    for path in _image_files(store.home(name, preset, results)):
        seen = _FIGURES.get(path.stem, path.stem.replace("_", " "))
        try:
            alt = f"{benchmark.title}, preset {preset}: {seen}"
            part.images.append(_image(path, alt, f"{part.anchor}-{path.stem}"))
        except UserError as error:
            part.errors.append(str(error))
    return part


def _fill(part: Part, table: Table) -> None:
    title = table.benchmark.title
    if table.rows:
        part.main = Sheet(f"{title}, preset {part.preset}", render.main_grid(table))
        part.headline = headline.sentence(table)
        part.notes = [inline(note) for note in render.notes(table)]
    if (readouts := render.readout_grid(table)).rows:
        part.readouts = Sheet(f"{title}, preset {part.preset}: every readout", readouts)
    if table.published_only:
        part.published = Sheet(f"{title}: published rows", render.published_grid(table))
    part.records = table.records


def _leads(entries: Sequence[Entry]) -> list[Lead]:
    """One sentence a preset."""
    parts = [part for entry in entries if entry.name == headline.BENCHMARK for part in entry.parts]
    return [Lead(part.preset, part.headline) for part in parts if part.headline]


# ---- tables ----


def cell_html(cell: TableCell) -> Markup:
    """A cell as HTML: the interval, and a difference that is none, set back."""
    if cell.is_faint:
        return Markup("<small>{} <span>{}</span></small>").format(cell.main, cell.detail)
    html = escape(cell.main)
    if cell.detail:
        html += Markup(" <small>{}</small>").format(cell.detail)
    return Markup("<strong>{}</strong>").format(html) if cell.is_bold else html


def inline(text: str) -> Markup:
    """Markdown's bold and code as HTML."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html))


# ---- figures and pictures ----


def _image_files(folder: Path) -> list[Path]:
    """SVG where there is one, else PNG, in the order of `_FIGURES`."""
    found = {path.stem: path for kind in ("png", "svg") for path in folder.glob(f"*.{kind}")}
    order = [*_FIGURES, *sorted(set(found) - set(_FIGURES))]
    return [found[stem] for stem in order if stem in found]


def _image(path: Path, alt: str, prefix: str) -> Image:
    """An image as part of the page."""
    try:
        content = path.read_bytes()
        if path.suffix == ".svg":
            return Image(svg(content.decode("utf-8"), alt, prefix), "svg")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be shown: {error}") from None
    if not content.startswith(_PNG):
        raise UserError(f"{path} cannot be shown: it is no PNG")
    data = base64.b64encode(content).decode("ascii")
    return Image(Markup('<img src="data:image/png;base64,{}" alt="{}">').format(data, alt), "png")


def svg(text: str, alt: str, prefix: str) -> Markup:
    """An SVG file as an element of a page: named, sized by its box, its ids and styles its own.

    Raises:
        ValueError: it is not a whole SVG file, or holds a script.
    """
    match = re.search(r"<svg\b([^>]*)>(.*)</svg>\s*$", text, re.DOTALL)
    if match is None or "<script" in text:
        raise ValueError("it is no whole SVG file without scripts")
    attributes, body = match.groups()
    box = re.search(r'viewBox="[-\d.]+ [-\d.]+ ([\d.]+) ([\d.]+)"', attributes)
    if box is None:
        raise ValueError("it has no viewBox")
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'href="#', f'href="#{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-").replace("*{", f"#{prefix} *{{")
    head = Markup(
        '<svg id="{}" role="img" aria-label="{}" viewBox="0 0 {} {}" style="--width: {}">'
    )
    return head.format(prefix, alt, box[1], box[2], box[1]) + Markup(body + "</svg>")
