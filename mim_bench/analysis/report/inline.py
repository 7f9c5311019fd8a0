"""Parts of a report's page: cells and notes as HTML, figures as SVG, pictures and downloads as base64."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from mim_bench.analysis.grid import TableCell
from mim_bench.errors import UserError
from mim_bench.records import png_stamp

FIGURES = {
    "figure": "accuracy along the quantity that the benchmark varies, published curve in grey",
    "pareto": "accuracy against the time of pre-training",
    "compute": "accuracy against the FLOPs of all that was trained",
    "curves": "loss of pre-training over that of the mean, and accuracy of fine-tuning, epoch by epoch",
    "similarity": "how alike the encoders of two targets are, and what each knows of the others' targets",
    "pictures": "test images, the target and what the model predicted",
    "ratios": "one test image, each target and what the model predicted, by how much is hidden",
}
"""File stem -> what is seen, in the order of the page; other files come after."""
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Image:
    """A figure or picture, inline."""

    html: Markup
    kind: str
    """`svg`, `png`, or `frames` of a PNG of which one is seen at a time."""


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


def image_files(folder: Path) -> list[Path]:
    """SVG where there is one, else PNG, in the order of `FIGURES`."""
    files = {path.stem: path for suffix in ("png", "svg") for path in folder.glob(f"*.{suffix}")}
    order = [*FIGURES, *sorted(set(files) - set(FIGURES))]
    return [files[stem] for stem in order if stem in files]


def image(path: Path, alt: str, prefix: str) -> Image:
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
    shown = Markup('<img src="data:image/png;base64,{}" alt="{}">').format(data, alt)
    if not (labels := png_stamp.read_frames(path)):
        return Image(shown, "png")
    return Image(_slider(shown, labels, f"{prefix}-frame"), "frames")


def _slider(img: Markup, labels: Sequence[str], name: str) -> Markup:
    """A picture of frames of which one is seen, and the slider that chooses it; without script the first."""
    return Markup(
        '<label for="{name}">mask ratio</label> <input type="range" id="{name}" min="0" max="{last}" value="{last}" '
        'data-frames="{labels}"> <output for="{name}"></output><div class="frames">{shown}</div>'
    ).format(name=name, last=len(labels) - 1, labels="|".join(labels), shown=img)


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


def download(text: str, name: str, title: str) -> Markup:
    """A link that saves a text as a file of that name."""
    data = base64.b64encode(text.encode()).decode("ascii")
    link = Markup('<a download="{}" href="data:text/plain;base64,{}">{}</a>')
    return link.format(name, data, title)
