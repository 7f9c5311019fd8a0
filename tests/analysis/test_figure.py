"""Figures: what is drawn is what the records say, all of it readable, every redraw the same bytes."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from scipy import stats

from mim_bench.analysis.figures import panel
from mim_bench.analysis.figures.by_target import costs
from mim_bench.analysis.figures.color import NUM_COLORS
from mim_bench.analysis.figures.draw import compose, draw
from mim_bench.analysis.figures.layout import panel_titles
from mim_bench.analysis.figures.panel import GREY, Curve, Panel, save, style
from mim_bench.analysis.published.match import published_rows
from mim_bench.config.benchmark import at_preset, load_benchmark
from mim_bench.config.resolve import load_config
from mim_bench.errors import UserError
from mim_bench.records import png_stamp
from mim_bench.records.measure import measures
from mim_bench.records.store import CellRecord, benchmark_records, home
from tests.fake import fake_results

Composed = tuple[dict[str, Figure], list[CellRecord]]
Drawn = Callable[[str], Composed]
ALL = (
    "mask_ratio", "decoder_depth", "decoder_width", "schedule", "partial_finetune", "targets",
    "pixel_loss", "scratch_vs_pretrained",
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for name in ALL:
        fake_results(name, "tiny", folder)
    return folder


@pytest.fixture(scope="module")
def drawn_once(results: Path) -> Drawn:
    """Figures of a benchmark, and what they were drawn from."""
    return cache(lambda name: composed(name, results))


def composed(name: str, results: Path) -> Composed:
    found = benchmark_records(name, "tiny", results)
    with style():
        return compose(at_preset(load_benchmark(name), "tiny"), found), found


def line(axes: Axes, label: str) -> Line2D:
    return next(one for one in axes.get_lines() if one.get_label() == label)


def points(axes: Axes, label: str) -> dict[float, float]:
    drawn = line(axes, label)
    x, y = (np.asarray(side, float) for side in (drawn.get_xdata(), drawn.get_ydata()))
    return dict(zip(x.tolist(), y.tolist(), strict=True))


def bars(axes: Axes, label: str) -> dict[float, tuple[float, float]]:
    """x -> ends of its interval."""
    lines = next(one for one in axes.collections if one.get_label() == f"{label} 95 %")
    assert isinstance(lines, LineCollection)
    return {float(ends[0, 0]): (ends[0, 1], ends[1, 1]) for ends in lines.get_segments()}


def values(found: list[CellRecord], measure: str, **place: object) -> list[float]:
    return [
        100 * named[measure].value
        for one in found
        if one.cell.point == place and measure in (named := measures(one.record))
    ]


def texts(drawn: Figure) -> list[Text]:
    """All that is shown."""
    ticks = [
        text
        for axes in drawn.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for text in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    ]
    found = [one for one in drawn.findobj(Text) if isinstance(one, Text)]
    return [one for one in found if one.get_text() and one.get_visible() and one not in ticks]


def words(drawn: Figure) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in texts(drawn))


def published_axes(axes: Axes) -> Axes:
    """The panel to the right of another, with the published curve."""
    everything = axes.get_figure(root=True).axes  # pyright: ignore
    return everything[everything.index(axes) + 1]


def test_figure__draws_means_and_intervals_of_the_records(drawn_once: Drawn) -> None:
    figures, found = drawn_once("mask_ratio")
    fine, _, linear, _ = figures["figure"].axes
    ratios = list(at_preset(load_benchmark("mask_ratio"), "tiny").grid["mask.ratio"])
    titles = [axes.get_title(loc="left") for axes in (fine, linear)]
    assert titles == ["fine-tuning", "linear probe"]
    for axes, measure in ((fine, "finetune"), (linear, "linear")):
        for target in ("norm_pixel", "hog"):
            means, ends = points(axes, target), bars(axes, target)
            assert list(means) == ratios == list(ends)
            for ratio, mean in means.items():
                of_seeds = values(found, measure, **{"target": target, "mask.ratio": ratio})
                assert len(of_seeds) == 3
                assert mean == pytest.approx(np.mean(of_seeds))
                low, high = stats.t.interval(0.95, 2, np.mean(of_seeds), stats.sem(of_seeds))
                assert ends[ratio] == pytest.approx((low, high))


def test_figure__single_seed_has_no_interval(tmp_path: Path) -> None:
    fake_results("decoder_width", "tiny", tmp_path, seeds=(0,))
    figures, found = composed("decoder_width", tmp_path)
    fine, place = figures["figure"].axes[0], found[0].cell.point
    assert not fine.collections
    value = points(fine, found[0].record.target)[place["model.decoder_dim"]]
    assert [value] == values(found, "finetune", **place)
    assert "One seed, so no interval" in words(figures["figure"])


def test_partial__runs_from_the_probe_to_fine_tuning(drawn_once: Drawn) -> None:
    figures, found = drawn_once("partial_finetune")
    axes, depth = figures["figure"].axes[0], found[0].cell.config.model.depth
    between = [k for k in found[0].cell.config.partial.blocks if k < depth]
    blocks = [0, *between, depth]
    assert [text.get_text() for text in axes.get_xticklabels()] == [f"{k:g}" for k in blocks]
    order = ("linear", *(f"partial {k:g}" for k in between), "finetune")
    for target in ("pixel", "norm_pixel", "hog", "dvae"):
        means = [np.mean(values(found, measure, target=target)) for measure in order]
        assert points(axes, target) == pytest.approx(dict(enumerate(means)))
    published = published_axes(axes)
    mae, ticks = points(published, "MAE"), [text.get_text() for text in published.get_xticklabels()]
    assert [mae[ticks.index(k)] for k in ("0", "12", "24")] == [73.5, 84.6, 84.9]


def test_published__in_grey_in_its_own_panel_with_inferred_points_open(drawn_once: Drawn) -> None:
    figures, _ = drawn_once("mask_ratio")
    measured = figures["figure"].axes[2]
    axes = published_axes(measured)
    table = published_rows(load_benchmark("mask_ratio"))
    rows = {row.mask_ratio: row for row in table if row.protocol == "linear"}
    assert points(axes, "MAE") == {ratio: row.value for ratio, row in rows.items()}
    closed, hollow = (set(one.get_xdata()) for one in axes.get_lines()[1:])  # pyright: ignore
    assert closed == {ratio for ratio, row in rows.items() if row.status == "confirmed"}
    assert hollow == {ratio for ratio, row in rows.items() if row.status == "inferred"}
    assert {to_rgba(str(one.get_color())) for one in axes.get_lines()} == {to_rgba(GREY)}
    assert axes.bbox.x0 > measured.bbox.x1
    assert axes.get_title(loc="left") == "as published" and "ViT-L" in axes.get_ylabel()
    assert "open: inferred" in words(figures["figure"])


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("schedule", [100, 200, 400, 800, 1600]),
        ("decoder_width", [128, 256, 512, 768, 1024]),
        ("decoder_depth", [1, 2, 4, 8, 12]),
    ],
)
def test_published__at_its_own_values(drawn_once: Drawn, name: str, published: list[float]) -> None:
    figures, _ = drawn_once(name)
    axes = published_axes(figures["figure"].axes[0])
    assert sorted(points(axes, "MAE")) == pytest.approx(published)


def test_target__has_one_colour_in_every_figure(drawn_once: Drawn) -> None:
    seen: dict[str, set[str]] = {}
    for name in ("mask_ratio", "targets", "scratch_vs_pretrained", "partial_finetune"):
        for drawn in drawn_once(name)[0].values():
            for axes in drawn.axes:
                for one in axes.get_lines():
                    if (label := str(one.get_label())) in ("pixel", "norm_pixel", "hog", "dvae"):
                        seen.setdefault(label, set()).add(str(to_rgba(str(one.get_color()))))
    assert len(seen) == 4 and all(len(colors) == 1 for colors in seen.values())
    assert len(set.union(*seen.values())) == 4


def test_two_seeds__are_drawn_themselves_and_a_single_epoch_is_seen(tmp_path: Path) -> None:
    fake_results("mask_ratio", "tiny", tmp_path, seeds=(0, 1))
    figures, found = composed("mask_ratio", tmp_path)
    linear = figures["figure"].axes[2]
    assert not linear.collections and "too few for an interval" in words(figures["figure"])
    drawn = sorted(float(y) for y in line(linear, "hog seeds").get_ydata())  # pyright: ignore
    of_seeds = [
        100 * named["linear"].value
        for one in found
        if one.record.target == "hog" and "linear" in (named := measures(one.record))
    ]
    assert drawn == pytest.approx(sorted(of_seeds))
    panel = Panel(figures["figure"].axes[0])
    panel.add(Curve("one", (1.0,), ((1.0, 2.0, 3.0),)), band=True)
    assert line(panel.axes, "one").get_marker() != "None"


def test_pareto__is_not_drawn_from_times_under_load(drawn_once: Drawn) -> None:
    assert "pareto" not in drawn_once("scratch_vs_pretrained")[0]  # it has no records of `speed`


def test_pareto__takes_the_time_of_a_step_where_every_run_has_it(
    drawn_once: Drawn, results: Path
) -> None:
    figures, found = drawn_once("targets")
    speed = {  # images a second over the seeds of a target
        target: values(found, "images_per_s", target=target) for target in ("pixel", "hog")
    }
    for axes in figures["pareto"].axes:
        assert "time of a training step" in axes.get_xlabel()
        assert "alone on the machine" in axes.get_xlabel()
        for target, rates in speed.items():
            cost = np.mean([1000 / (rate / 100) for rate in rates])  # `values` are times 100
            (x, y), = points(axes, target).items()  # fmt: skip
            assert x == pytest.approx(cost)
            measure = {"fine-tuning": "finetune", "linear probe": "linear"}[
                axes.get_title(loc="left")
            ]
            assert y == pytest.approx(np.mean(values(found, measure, target=target)))
    lacking = [
        one
        for one in found
        if (one.record.protocol, one.record.target, one.record.seed) != ("speed", "hog", 1)
    ]
    assert len(lacking) == len(found) - 1
    with style():
        assert "pareto" not in compose(at_preset(load_benchmark("targets"), "tiny"), lacking)


def test_compute__is_along_x_where_every_run_has_it(drawn_once: Drawn) -> None:
    figures, found = drawn_once("targets")
    for axes in figures["compute"].axes:
        assert list(points(axes, "hog")) == [2] and list(points(axes, "dvae")) == [
            3
        ]  # tests/fake.py
    assert "below the gate, no finding" in words(figures["compute"])  # the preset is tiny
    trained = next(one for one in found if one.record.protocol == "linear")
    facts = trained.record.pretrain.model_copy(update={"flops": None})
    lacking = replace(trained, record=trained.record.model_copy(update={"pretrain": facts}))
    assert costs([lacking], "compute") == {} != costs([trained], "compute")


def test_curves__of_records_with_a_gate_are_over_the_means_loss(results: Path) -> None:
    found = benchmark_records("scratch_vs_pretrained", "tiny", results)
    gated = []
    for one in found:
        facts = one.record.pretrain and one.record.pretrain.model_copy(
            update={"gate": {"mean_loss": 2.0}}
        )
        gated.append(replace(one, record=one.record.model_copy(update={"pretrain": facts})))
    with style():
        loss = compose(at_preset(load_benchmark("scratch_vs_pretrained"), "tiny"), gated)[
            "curves"
        ].axes[0]
    assert points(loss, "hog")[1] == pytest.approx(0.5 / 2) and "mean" in loss.get_ylabel()


def test_curves__losses_are_over_the_means_and_accuracies_are_the_records(
    drawn_once: Drawn,
) -> None:
    figures, found = drawn_once("scratch_vs_pretrained")
    loss, accuracy = figures["curves"].axes
    first = next(one.record.pretrain for one in found if one.record.pretrain is not None)
    for target in ("pixel", "norm_pixel", "hog", "dvae"):
        assert points(loss, target) == pytest.approx(
            {epoch: value / first.gate["mean_loss"] for epoch, value in first.epoch_losses}
        )
    curves = [one.record.curves["model"] for one in found if one.record.protocol == "scratch"]
    drawn = list(points(accuracy, "scratch").values())
    assert drawn == pytest.approx(100 * np.mean(curves, axis=0))


def test_curves__of_many_rows_the_ones_at_the_presets_own_value(drawn_once: Drawn) -> None:
    drawn, ratio = drawn_once("mask_ratio")[0]["curves"], load_config("hog", "tiny").mask.ratio
    labels = {str(one.get_label()) for one in drawn.axes[0].get_lines()}
    assert labels == {"norm_pixel", "hog"}
    assert f"At ratio {ratio:g}" in words(drawn)


@pytest.mark.parametrize("name", ALL)
def test_every_figure__readable(drawn_once: Drawn, name: str) -> None:
    figures, _ = drawn_once(name)
    benchmark = load_benchmark(name)
    stems = ["figure"] if benchmark.figure else []
    if "target" in benchmark.grid:
        is_timed = "speed" in at_preset(benchmark, "tiny").protocols
        stems += ["pareto"] * is_timed + ["compute", "curves"]
    assert list(figures) == stems
    for stem, drawn in figures.items():
        with style():
            drawn.draw_without_rendering()
        sheet, shown = drawn.bbox, texts(drawn)
        extents = [Text.get_window_extent(text) for text in shown]
        for text, box in zip(shown, extents, strict=True):
            assert float(text.get_fontsize()) >= 8
            assert sheet.x0 <= box.x0 and box.x1 <= sheet.x1, (stem, text)
            assert sheet.y0 <= box.y0 and box.y1 <= sheet.y1, (stem, text)
        boxes = [box.padded(-2) for box in extents]
        for i, box in enumerate(boxes):
            hit = [shown[j] for j in range(i) if boxes[j].overlaps(box)]
            assert not hit, (stem, shown[i], hit)


def test_draw__writes_all_formats_and_a_redraw_is_byte_identical(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = draw("decoder_width", "tiny", results)
    folder = home("decoder_width", "tiny", results)
    assert paths == [folder / f"figure.{suffix}" for suffix in ("png", "svg", "pdf")]
    before = [path.read_bytes() for path in paths]
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20)  # the user's own settings
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    assert draw("decoder_width", "tiny", results) == paths
    assert [path.read_bytes() for path in paths] == before
    records = [one.record for one in benchmark_records("decoder_width", "tiny", results)]
    assert png_stamp.read(folder / "figure.png") == png_stamp.of_records(records)
    assert b"matplotlib" not in (folder / "figure.png").read_bytes().lower()  # nor its version
    svg = (folder / "figure.svg").read_text()
    assert ">norm_pixel</text>" in svg
    assert "<dc:date>" not in svg
    assert b"CreationDate" not in (folder / "figure.pdf").read_bytes()
    assert matplotlib.rcParams["font.size"] == 20


@pytest.mark.parametrize("name", ["methods", "wall_time", "augmentation"])
def test_draw__without_a_figure_points_to_the_table(results: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' has no figure; its table is `table {name}`"):
        draw(name, "tiny", results)


def test_draw__without_records_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sweep mask_ratio --preset tiny"):
        draw("mask_ratio", "tiny", tmp_path)


def test_draw__records_without_anything_to_draw(tmp_path: Path) -> None:
    fake_results("targets", "tiny", tmp_path, seeds=(0,))
    records = home("targets", "tiny", tmp_path) / "records"
    for path in records.iterdir():
        if "__speed" not in path.name:
            path.unlink()
    with pytest.raises(UserError, match="nothing to draw; `sweep targets --preset tiny`"):
        draw("targets", "tiny", tmp_path)


def test_save__leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"old")

    def fail(self: Figure, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(UserError, match="cannot write .*disk full"):
        save(Figure(), tmp_path / "a", "")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"old")]


def test_style__is_colour_blind_safe_and_shipped() -> None:
    assert panel.STYLE.is_file()
    with style():
        colors = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
        okabe_ito = {"000000", "E69F00", "56B4E9", "009E73", "0072B2", "D55E00", "CC79A7"}
        assert {color.strip("#") for color in colors} == okabe_ito
        assert len(colors) == len(okabe_ito) == NUM_COLORS
        assert matplotlib.rcParams["pdf.fonttype"] == 42
    assert Curve("a", (0.0,), ((1.0,),), 7).color == "C0"
    assert panel_titles().keys() == {"finetune", "linear"}
