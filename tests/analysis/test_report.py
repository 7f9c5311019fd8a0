"""The report page: what is written, and what a real browser makes of it."""

import csv
import io
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from fake import fake_results
from matplotlib.figure import Figure
from PIL import Image

from mim_bench.analysis import difference, headline, render, table, write
from mim_bench.analysis.grid import TableCell
from mim_bench.analysis.report.inline import cell_html, inline, svg
from mim_bench.analysis.report.page import write_report
from mim_bench.analysis.table import Table
from mim_bench.errors import UserError
from mim_bench.evaluate.picture import write_frames
from mim_bench.records.store import home

_NUMBERS = r"[-+]?\d[\d,]*\.?\d*"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two benchmarks with figures and a picture, and a third one that is damaged."""
    results = tmp_path_factory.mktemp("results")
    fake_results("targets", "tiny", results)
    fake_results("wall_time", "tiny", results)
    for stem in ("pareto", "curves", "elsewhere"):
        figure = Figure()
        figure.subplots().plot([0, 1, 2], [3, 1, 2], "o", label=stem)
        figure.savefig(home("targets", "tiny", results) / f"{stem}.svg")
    Image.new("RGB", (900, 300), "teal").save(home("targets", "tiny", results) / "pictures.png")
    frames = {label: Figure(figsize=(6, 2), facecolor=label) for label in ("red", "lime", "blue")}
    write_frames(frames, home("targets", "tiny", results) / "ratios.png")
    broken = home("decoder_depth", "tiny", results) / "records"
    broken.mkdir(parents=True)
    (broken / "a_run__linear.json").write_text("{}")
    return results


@pytest.fixture(scope="module")
def built(made: Path) -> Callable[[str], Table]:
    """Tables of the same records, each made once."""
    return cache(lambda name: table.build(name, "tiny", made))


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def page(made: Path, told: list[str]) -> Path:
    return write_report(made, told.append)


@pytest.fixture(scope="module")
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# ---- what is written ----


def test_write_report__same_records_same_page(page: Path, made: Path, text: str) -> None:
    assert page == made / "report.html"
    assert write_report(made, lambda line: None).read_text(encoding="utf-8") == text


def test_write_report__needs_no_other_file(text: str) -> None:
    assert not re.findall(r"""(?:src|href|srcset|action|poster)\s*=\s*["'](?!data:|#)""", text)
    assert not re.search(r"url\((?!#)|@import|<iframe|<object|<link (?!rel=\"icon\")", text)
    assert "http://" not in text and "https://" not in text
    assert "default-src 'none'" in text


def test_write_report__damage_stands_in_its_place(text: str, told: list[str]) -> None:
    assert len(told) == 1 and told[0].startswith("decoder_depth, preset tiny: ")
    section = text[text.index('id="decoder_depth"') :].partition("</section>")[0]
    assert "Not shown." in section and "a_run__linear.json" in section
    assert 'id="targets-tiny"' in text


def test_write_report__what_has_no_records_comes_last_with_its_command(text: str) -> None:
    rest = text[text.index('id="without-records"') :]
    assert "python -m mim_bench sweep mask_ratio --preset tiny" in rest
    for name in ("targets", "wall_time", "methods", "decoder_depth"):
        assert f"sweep {name} " not in rest
    methods = text[text.index('id="methods"') :].partition("</section>")[0]
    assert "MAE, Table 3" in methods


def test_write_report__figures_do_not_share_ids(text: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert set(wanted) <= set(ids)
    assert text.count('role="img" aria-label="Reconstruction targets') == 3


def test_write_report__one_benchmark_damaged_leaves_the_lead(tmp_path: Path) -> None:
    fake_results("targets", "tiny", tmp_path, seeds=(0, 1))
    broken = home("mask_ratio", "tiny", tmp_path) / "records"
    broken.mkdir(parents=True)
    (broken / "a_run__linear.json").write_text("{}")
    (home("targets", "tiny", tmp_path) / "pictures.png").write_bytes(b"half a picture")
    (tmp_path / "strange" / "tiny" / "records").mkdir(parents=True)
    (tmp_path / "strange" / "tiny" / "records" / "a__linear.json").write_text("{}")
    told: list[str] = []
    text = write_report(tmp_path, told.append).read_text(encoding="utf-8")
    assert (
        "Exploratory, with 2 seeds a row where a ranking needs 5: at preset tiny:" in text
        and "Against pixel on " in text
        and "cannot be separated at this budget" in text
    )
    assert [line.partition(":")[0] for line in told] == [
        "targets, preset tiny", "mask_ratio, preset tiny", str(tmp_path / "strange"),
    ]  # fmt: skip
    assert "pictures.png cannot be shown: it is no PNG" in told[0]


def test_write_report__no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        write_report(tmp_path / "none")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "No record yet says" in text and "sweep targets --preset tiny" in text


def test_cell_html__keeps_the_text_and_escapes_it() -> None:
    cells = [TableCell("77.0", 77.0, "± 2.2", is_bold=True), TableCell("a < b & c"),
             TableCell("indistinguishable", 0.0, "[-2.5, +3.5]", is_faint=True)]  # fmt: skip
    for cell in cells:
        assert cell_html(cell).striptags() == cell.text
    assert cell_html(cells[0]) == "<strong>77.0 <small>± 2.2</small></strong>"
    assert inline("**1.0** `a<b`") == "<strong>1.0</strong> <code>a&lt;b</code>"


@pytest.mark.parametrize("text", ["", "<svg>", "<svg viewBox='0'></svg>", "<svg><script/></svg>"])
def test_svg__refuses_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="it "):
        svg(text, "seen", "here")


# ---- in a browser ----


_TABLE = """
const table = document.querySelector(`[aria-label="${arguments[0]}"] table`);
const rows = [...table.rows].map(row => [...row.cells].map(cell => cell.textContent.trim()));
return rows;
"""
_HEAD = """
const table = document.querySelector(`[aria-label="${arguments[0]}"] table`);
return table.tHead.rows[0].cells[arguments[1]].querySelector("button");
"""
_ARIA = """
const table = document.querySelector(`[aria-label="${arguments[0]}"] table`);
return [...table.tHead.rows[0].cells].map(cell => cell.getAttribute("aria-sort"));
"""
_MAIN = "Reconstruction targets, preset tiny"


def _plain(texts: list[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


@pytest.mark.parametrize("name", ["targets", "wall_time"])
def test_page__shows_every_number_of_the_tables(
    browser: Browser, built: Callable[[str], Table], name: str
) -> None:
    found = built(name)
    title = found.benchmark.title
    wanted = {
        f"{title}, preset tiny": render.main_grid(found, brief=True),
        f"{title}, preset tiny: every readout": render.readout_grid(found),
        f"{title}: published rows": render.published_grid(found),
    }
    for caption, grid in wanted.items():
        if grid.rows:
            shown = browser.run(_TABLE, caption)
            assert [_plain(line) for line in shown] == [
                _plain(grid.headings),
                *map(_plain, grid.texts),
            ]


def test_page__numbers_are_those_of_the_csv(
    browser: Browser, built: Callable[[str], Table]
) -> None:
    found = built("targets")
    headings, *lines = browser.run(_TABLE, _MAIN)
    unrounded = {line["row"]: line for line in csv.DictReader(io.StringIO(write.csv(found)))}
    num_checked = 0
    for column in render.main_columns(found):
        place, factor = headings.index(column.heading), 100 if column.is_fraction else 1
        for line in lines:
            of_row = unrounded[line[0]]
            if not of_row[column.key]:
                assert line[place] == "-"
                continue
            numbers = [float(text) for text in re.findall(_NUMBERS, line[place])]
            keys = [key for key in (column.key, f"{column.key} half") if of_row.get(key)]
            wanted = [factor * float(of_row[key]) for key in keys]
            seen = numbers[: len(wanted)]  # of two seeds both values follow
            assert seen == pytest.approx(wanted[: len(numbers)], abs=0.051)
            num_checked += len(numbers)
    assert num_checked >= 4 * len(render.main_columns(found))


def _numbers(browser: Browser, column: int) -> list[float]:
    lines = browser.run(_TABLE, _MAIN)[1:]
    return [float(re.findall(_NUMBERS, line[column])[0]) for line in lines if line[column] != "-"]


def test_page__a_click_sorts_and_a_second_reverses(browser: Browser) -> None:
    headings, *lines = browser.run(_TABLE, _MAIN)
    column = headings.index("linear %")
    browser.click(browser.run(_HEAD, _MAIN, column))
    falling = _numbers(browser, column)
    assert falling == sorted(falling, reverse=True) and len(set(falling)) > 4
    assert browser.run(_ARIA, _MAIN) == [
        "descending" if place == column else None for place in range(len(headings))
    ]
    browser.click(browser.run(_HEAD, _MAIN, column))
    assert _numbers(browser, column) == falling[::-1]
    assert browser.run(_ARIA, _MAIN)[column] == "ascending"
    assert sorted(browser.run(_TABLE, _MAIN)[1:]) == sorted(lines)  # rows stay whole


def test_page__the_keyboard_sorts_words(browser: Browser) -> None:
    browser.run(_HEAD.replace("return ", "const button = ") + "button.focus()", _MAIN, 0)
    browser.press("\ue007")  # Enter
    labels = [line[0] for line in browser.run(_TABLE, _MAIN)[1:]]
    assert (
        labels == sorted(labels, key=str.casefold) and browser.run(_ARIA, _MAIN)[0] == "ascending"
    )


def test_page__missing_numbers_stay_last(browser: Browser) -> None:
    headings = browser.run(_TABLE, _MAIN)[0]
    column = headings.index("fit s")
    for _ in range(2):
        browser.click(browser.run(_HEAD, _MAIN, column))
        cells = [line[column] for line in browser.run(_TABLE, _MAIN)[1:]]
        assert "-" in cells and "-" not in cells[: -cells.count("-")]


def test_page__nothing_leaves_it_and_the_console_is_silent(browser: Browser, page: Path) -> None:
    browser.requests()
    browser.log("browser")
    browser.open(page)
    asked = browser.requests()
    assert asked[0] == page.resolve().as_uri()
    assert all(address.startswith("data:") for address in asked[1:])
    assert browser.log("browser") == []
    assert browser.run("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.run("return [...document.images].every(i => i.alt.length > 20)")


_SHOWN = """
return [...document.querySelectorAll('.compare[data-part="targets-tiny"] .measure')]
  .filter(one => one.offsetHeight > 0).map(one => one.dataset.measure);
"""


def test_page__one_measure_is_seen_at_a_time_and_stands_in_the_address(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    assert browser.run(_SHOWN) == ["finetune"]
    browser.run(
        "const one = document.querySelector('select[data-switch=\"targets-tiny\"]');"
        "one.value = 'knn'; one.dispatchEvent(new Event('change'))"
    )
    assert browser.run(_SHOWN) == ["knn"]
    assert browser.run("return location.hash") == "#?measure=knn"
    browser.run("location.hash = '#targets-tiny?measure=linear&rows=HOG'")
    browser.run("return new Promise(done => setTimeout(done, 100))")
    assert browser.run(_SHOWN) == ["linear"]
    seen = browser.run(
        """const table = document.querySelector(`[aria-label="${arguments[0]}"] table`);
        return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[0].textContent.trim())""",
        _MAIN,
    )
    assert seen and all("hog" in label for label in seen)
    browser.run("location.hash = '#'")


def test_page__a_click_on_a_row_shows_its_command_seeds_and_settings(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    link = f"""const table = document.querySelector(`[aria-label="{_MAIN}"] table`);
    return [...table.querySelectorAll('tbody a')].find(one => one.textContent.includes('hog'))"""
    browser.click(browser.run(link))
    opened = browser.run(
        "const one = document.querySelector(location.hash); return [one.open, one.innerText]"
    )
    assert opened[0] is True
    assert "python -m mim_bench run --target hog --preset tiny --seed 0" in opened[1]
    assert "seed 1: complete, run hog-tiny-s1" in opened[1]
    assert "target.params.num_bins=9" in opened[1]


def test_page__a_slider_moves_the_frames_of_a_picture(browser: Browser) -> None:
    script = """
        const slider = document.querySelector("input[data-frames]"), card = slider.closest("figure");
        const frames = card.querySelector(".frames"), image = card.querySelector("img");
        slider.value = arguments[0];
        slider.dispatchEvent(new Event("input"));
        const window = frames.getBoundingClientRect(), whole = image.getBoundingClientRect();
        return [card.querySelector("output").value, Math.round(100 * (window.top - whole.top) / whole.height),
                Math.round(100 * window.height / whole.height), Math.round(100 * window.width / whole.width)];
    """
    for place, (label, above) in enumerate((("red", 0), ("lime", 33), ("blue", 67))):
        assert browser.run(script, place) == [label, above, 33, 100]


def test_headline__of_a_single_seed_separates_nothing(tmp_path: Path) -> None:
    fake_results("targets", "tiny", tmp_path, seeds=(0,), spread=0.25)
    said = headline.sentence(table.build("targets", "tiny", tmp_path))
    assert "1 seed: fine-tune (" in said and "A single seed separates nothing" in said
    assert "cannot be separated" not in said


def test_headline__says_of_each_row_where_it_is_better_worse_or_alike() -> None:
    def one(mean: float, p: float) -> difference.Difference:
        return difference.Difference(mean, mean - 0.01, mean + 0.01, 0.005, 3, p, 9, 0.014)

    deltas = {
        "linear": {"hog": one(0.024, 0.001), "dvae": one(-0.01, 0.01), "pca": one(0.001, 0.9)},
        "kNN": {"hog": one(0.051, 0.001), "dvae": one(0.002, 0.8), "pca": one(0.002, 0.9)},
    }
    said = [headline._over_measures(label, deltas) for label in ("hog", "dvae", "pca")]
    assert said == [
        "hog is better on each (+2.4 to +5.1 points)",
        "dvae is worse on linear (-1.0 points), not separated on kNN",
        "pca is not separated on any",
    ]


_WIDTHS = "return [document.documentElement.scrollWidth, innerWidth]"
_OPEN = "for (const folded of document.querySelectorAll('details')) folded.open = true"


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_page__only_tables_scroll_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width, is_phone=width < 500)
    browser.open(page)
    browser.run(_OPEN)
    page_width, window = browser.run(_WIDTHS)
    assert page_width <= window == width
    box: list[Any] = browser.run(
        "const box = document.querySelector('.benchmark .scroll'); box.scrollLeft = 500;"
        "const first = box.querySelector('tbody th').getBoundingClientRect();"
        "return [box.scrollWidth > box.clientWidth, first.left - box.getBoundingClientRect().left]"
    )
    if width < 500:
        assert box == [True, 0]  # its first column stays


def test_page__dark_is_dark_and_figures_stay_on_white(browser: Browser, page: Path) -> None:
    browser.resize(1280)
    seen = {}
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        seen[scheme] = browser.run(
            "return ['body', '.card'].map(s => getComputedStyle(document.querySelector(s)).backgroundColor)"
        )
    browser.prefer("light")
    assert seen == {
        "light": ["rgb(255, 255, 255)", "rgb(255, 255, 255)"],
        "dark": ["rgb(20, 23, 27)", "rgb(255, 255, 255)"],
    }
