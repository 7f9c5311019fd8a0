"""Labels of curves: apart, in order, each in its curve's colour, at their points or in a column."""

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from mim_bench.analysis.figures.color import legible
from mim_bench.analysis.figures.label import _crosses, spread
from mim_bench.analysis.figures.panel import Curve, Panel, finish, style

NAMES = ("pixel", "norm_pixel", "hog", "dvae")


def labelled(*, at_points: bool) -> Panel:
    """Four curves (or points) that end close together, with their labels in place."""
    with style():
        panel = Panel(Figure(figsize=(4.6, 3.4)).subplots(), labels_at_points=at_points)
        for number, name in enumerate(NAMES):
            x, values = (1.0, 2.0), ((70.0,), (75.0 + 0.05 * number,))
            if at_points:  # the last one far from the others
                x, values = ((0.0,), ((80.0,),)) if name == "dvae" else (x[:1], values[1:])
            panel.add(Curve(name, x, values, number))
        figure = panel.axes.get_figure(root=True)
        assert isinstance(figure, Figure)
        finish(figure, [panel])
    return panel


def placed(panel: Panel) -> dict[str, Annotation]:
    return {text.get_text(): text for text in panel.axes.texts if isinstance(text, Annotation)}


@pytest.mark.parametrize("at_points", [False, True])
def test_place__every_curve_named_in_its_colour_none_over_another(at_points: bool) -> None:
    panel = labelled(at_points=at_points)
    labels = placed(panel)
    assert list(labels) == list(NAMES)
    with style():
        lines = {str(one.get_label()): to_hex(str(one.get_color())) for one in panel.axes.lines}
        colors = {name: to_rgba(legible(color)) for name, color in lines.items()}
        assert {name: to_rgba(str(text.get_color())) for name, text in labels.items()} == colors
    boxes = [Text.get_window_extent(text) for text in labels.values()]
    for number, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:number])
        assert box.x1 <= panel.axes.bbox.x1 + 1
    has_line = [
        text.arrow_patch is not None and text.arrow_patch.get_visible() for text in labels.values()
    ]
    assert has_line[-1] is not at_points  # next to its point, far from the others
    assert at_points or all(has_line)


def test_place__rather_over_bars_than_over_another_label() -> None:
    """The points of `targets` at `tiny`: long bars through all of them, at the left edge of the panel."""
    points = {
        "pixel": ((0.94,), ((78.7, 80.2, 81.6),)),
        "norm_pixel": ((0.895,), ((78.3, 80.2, 82.2),)),
        "hog": ((0.873,), ((78.1, 79.3, 80.5),)),
        "dvae": ((1.83,), ((80.5, 80.8, 81.1),)),
    }
    with style():
        panel = Panel(
            Figure(figsize=(3.6, 3.4), layout="constrained").subplots(), labels_at_points=True
        )
        for number, (name, (x, values)) in enumerate(points.items()):
            panel.add(Curve(name, x, values, number))
            panel.axes.hlines(np.mean(values), x[0] - 0.1, x[0] + 0.1)
        figure = panel.axes.get_figure(root=True)
        assert isinstance(figure, Figure)
        finish(figure, [panel])
    boxes = [Text.get_window_extent(text) for text in placed(panel).values()]
    assert len(boxes) == 4
    for number, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:number])


def test_place__over_no_marker_and_no_line_through_a_text() -> None:
    """`targets` at `tiny`: pixel's label was over a seed of hog; `all_targets`: lines crossed words."""
    with style():
        panel = Panel(
            Figure(figsize=(3.6, 3.4), layout="constrained").subplots(), labels_at_points=True
        )
        points = {"pixel": (0.318, 80.3, 0.2), "norm_pixel": (0.329, 80.43, 0.28),
                  "hog": (0.346, 80.15, 0.2), "dvae": (0.544, 80.9, 0.8)}  # fmt: skip
        for number, (name, (x, y, half)) in enumerate(points.items()):
            panel.add(Curve(name, (x,), ((y - half, y + half),), number))
        figure = panel.axes.get_figure(root=True)
        assert isinstance(figure, Figure)
        finish(figure, [panel])
    assert_legible(panel)


def assert_legible(panel: Panel) -> None:
    """No label is over a marker, no visible line goes through another label."""
    labels = list(placed(panel).values())
    boxes = np.array([Text.get_window_extent(text).extents for text in labels])
    for line in panel.axes.lines:
        for x, y in line.get_transform().transform(line.get_xydata()):
            inside = (boxes[:, :2] < (x, y)).all(1) & (boxes[:, 2:] > (x, y)).all(1)
            assert not inside.any(), (labels[int(inside.argmax())], line.get_label())
    for text, (left, low, right, high) in zip(labels, boxes, strict=True):
        if text.arrow_patch is not None and text.arrow_patch.get_visible():
            end = panel.axes.transData.transform(text.xy)
            start = right if left < end[0] else left
            others = np.array(
                [box for other, box in zip(labels, boxes, strict=True) if other is not text]
            )
            line = np.array([[start, (low + high) / 2, *end]])
            assert not _crosses(line, others).any(), text


def test_place__a_column_right_of_every_curve_in_their_order() -> None:
    panel = labelled(at_points=False)
    boxes = [Text.get_window_extent(text) for text in placed(panel).values()]
    end = panel.axes.transData.transform((2.0, 75.0))[0]
    assert min(box.x0 for box in boxes) > end
    assert np.ptp([box.x0 for box in boxes]) < 1
    assert [box.y0 for box in boxes] == sorted(box.y0 for box in boxes)


def test_spread__keeps_order_and_distance_and_moves_no_more_than_needed() -> None:
    wanted = np.array([5.0, 50.0, 4.0, 5.0])
    placed = spread(wanted, 2.0, 0.0, 60.0)
    assert placed[1] == 50
    assert sorted(placed[[2, 0, 3]].tolist()) == pytest.approx([8 / 3, 14 / 3, 20 / 3])
    assert spread(np.full(3, 10.0), 2.0, 0.0, 10.0).tolist() == [6, 8, 10]
    assert np.all(np.diff(spread(np.zeros(9), 5.0, 0.0, 16.0)) == pytest.approx(2.0))


def test_place__a_crowd_at_the_left_finds_room_at_the_right() -> None:
    """`all_targets` at `small`: a dozen targets of one cost and nearly one accuracy, a few far at the right."""
    with style():
        panel = Panel(
            Figure(figsize=(4.6, 3.6), layout="constrained").subplots(), labels_at_points=True
        )
        for number in range(12):
            panel.add(Curve(f"some_target_{number}", (141.0,), ((55 + 0.1 * number,),), number))
        for number, (x, y) in enumerate(((140.0, 58.5), (270.0, 56.0), (285.0, 52.0))):
            panel.add(Curve(f"other_{number}", (x,), ((y,),), number))
        figure = panel.axes.get_figure(root=True)
        assert isinstance(figure, Figure)
        finish(figure, [panel])
    boxes = [Text.get_window_extent(text) for text in placed(panel).values()]
    for number, box in enumerate(boxes):
        assert not box.padded(-1).count_overlaps(boxes[:number])
        assert panel.axes.bbox.x0 <= box.x0 and box.x1 <= panel.axes.bbox.x1 + 1
    assert_legible(panel)
