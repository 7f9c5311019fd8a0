"""The report in a real browser: on a phone, in the dark, in print, and by its address."""

from pathlib import Path

import pytest
from browser import Browser
from fake import fake_results
from matplotlib.figure import Figure

from mim_bench.analysis.figures.color import contrast
from mim_bench.analysis.report.page import write_report
from mim_bench.evaluate.picture import write_frames
from mim_bench.records.store import home


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    fake_results("targets", "tiny", results)
    fake_results("mask_ratio", "tiny", results)
    frames = {label: Figure(figsize=(6, 2), facecolor=label) for label in ("red", "lime", "blue")}
    write_frames(frames, home("targets", "tiny", results) / "ratios.png")
    return write_report(results, lambda line: None)


def _hex(rgb: str) -> str:
    numbers = rgb.removeprefix("rgb(").removesuffix(")").split(",")
    return "#" + "".join(f"{int(number):02x}" for number in numbers)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_card__its_words_are_legible(browser: Browser, scheme: str) -> None:
    browser.prefer(scheme)
    colors = browser.run(
        "const card = document.querySelector('.card.frames'), paper = getComputedStyle(card).backgroundColor;"
        "return ['label', 'output'].map(s => [getComputedStyle(card.querySelector(s)).color, paper])"
    )
    browser.prefer("light")
    assert all(contrast(_hex(ink), _hex(paper)) >= 4.5 for ink, paper in colors)


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_dots__are_seen_without_scrolling(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width, is_phone=width < 500)
    browser.open(page)
    left, right, font, shown, rows = browser.run("""
        const drawing = [...document.querySelectorAll('.compare[data-part="mask_ratio-tiny"] .drawing:not(.ranks)')]
          .filter(one => one.getClientRects().length)[0];
        const shapes = [...drawing.querySelectorAll('path, circle, line, text')];
        const parts = shapes.map(shape => shape.getBoundingClientRect());
        const scale = drawing.getBoundingClientRect().width / drawing.viewBox.baseVal.width;
        const sizes = [...drawing.querySelectorAll('text')].map(text => parseFloat(getComputedStyle(text).fontSize));
        return [Math.min(...parts.map(part => part.left)), Math.max(...parts.map(part => part.right)),
                Math.min(...sizes) * scale, drawing.classList.contains("narrow"),
                drawing.querySelectorAll('.dot, .hollow').length]
    """)
    assert shown == (width < 500) and rows == 8
    assert left >= 0 and right <= width and font >= 9 - (width < 390)


def test_hint__is_seen_once_where_pictures_are_small(browser: Browser, page: Path) -> None:
    seen = {}
    for width in (390, 1280):
        browser.resize(width, is_phone=width < 500)
        seen[width] = browser.run(
            "return [...document.querySelectorAll('.hint')].map(one => one.offsetHeight > 0)"
        )
    assert seen == {390: [True], 1280: [False]}


_VIEW = """
return [location.hash, document.querySelector("input[data-filter]").value,
        document.querySelector('select[data-switch="targets-tiny"]').value,
        [...document.querySelectorAll("details.origin[open]")].map(one => one.id)]
"""


def test_address__describes_the_whole_view(browser: Browser, page: Path) -> None:
    browser.resize(1280)
    browser.open(page)
    browser.run("location.hash = '#?rows=hog&measure=knn'")
    wait = "return new Promise(done => setTimeout(done, 100))"
    browser.run(wait)
    link = """return [...document.querySelectorAll('#targets a[href^="#targets-tiny-row"], '
        + '[aria-label="Reconstruction targets, preset tiny"] tbody a')].find(one => one.offsetHeight > 0)"""
    browser.click(browser.run(link))
    row = "targets-tiny-row-2"
    view = [f"#{row}?rows=hog&measure=knn", "hog", "knn", [row]]
    assert browser.run(_VIEW) == view
    browser.run("history.back()")
    browser.run(wait)
    assert browser.run(_VIEW)[:3] == ["#?rows=hog&measure=knn", "hog", "knn"]
    browser.run("location.hash = '#targets'")  # an address of nothing chosen
    browser.run(wait)
    hash_, rows, measure, _ = browser.run(_VIEW)
    assert (hash_, rows) == ("#targets", "") and measure != "knn"


def test_print__nothing_is_cut_and_headings_stay_with_what_follows(
    browser: Browser, page: Path
) -> None:
    browser.resize(1032)  # A4 across, without its margins
    browser.open(page)
    browser.tell("Emulation.setEmulatedMedia", media="print")
    browser.run("for (const folded of document.querySelectorAll('details')) folded.open = true")
    cut = browser.run(
        "return [...document.querySelectorAll('.scroll, .plot, .card')]"
        ".filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.getAttribute('aria-label'))"
    )
    breaks = browser.run(
        "return ['h2', 'h3', 'h4'].map(s => getComputedStyle(document.querySelector(s)).breakAfter)"
    )
    tallest = browser.run(
        "return Math.max(...[...document.querySelectorAll('.plot svg')].map(one => one.getBoundingClientRect().height))"
    )
    browser.tell("Emulation.setEmulatedMedia", media="")
    assert cut == [] and breaks == ["avoid"] * 3 and tallest < 186 * 96 / 25.4
