"""Looks of targets: the same everywhere, each its own, legible."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.image import AxesImage

from mim_bench.analysis.figures.color import (
    NUM_COLORS,
    contrast,
    legible,
    line_number,
    look_numbers,
    marker_number,
)
from mim_bench.analysis.figures.panel import GREY, style
from mim_bench.analysis.figures.similarity import compose
from mim_bench.config import recipe


def test_look_numbers__a_target_has_its_own_whatever_else_is_drawn() -> None:
    names = recipe.names("targets")
    everything = look_numbers({name: name for name in names})
    assert len(set(everything.values())) == len(names)
    assert (
        look_numbers({"one row": "wavelet", "other": "outside"})["one row"] == everything["wavelet"]
    )
    for second in (line_number, marker_number):
        looks = {(number % NUM_COLORS, second(number)) for number in everything.values()}
        assert len(looks) == len(names)


def test_look_numbers__rows_of_a_target_share_its_colour_and_nothing_else() -> None:
    targets = {
        f"{name}, {ratio}": name for ratio in range(4) for name in ("pixel", "hog", "palette")
    }
    numbers = look_numbers(targets)
    assert len(set(numbers.values())) == len(targets)
    own = look_numbers({name: name for name in set(targets.values())})
    for label, number in numbers.items():
        assert number % NUM_COLORS == own[targets[label]] % NUM_COLORS
    assert (
        numbers["palette, 0"] == own["palette"]
    )  # no further row of pixel, of the same colour, takes it


def test_legible__text_on_white_has_its_contrast_and_dark_colours_stay() -> None:
    assert contrast("black", "white") == 21 and contrast("white", "white") == 1
    with style():
        colors = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    for color in (f"#{color.strip('#')}" for color in [*colors, GREY]):
        assert contrast(legible(color), "white") >= 4.5
        if contrast(color, "white") >= 4.6:
            assert legible(color) == color.lower()


def test_similarity__every_number_is_seen_on_its_cell() -> None:
    values = np.linspace(0, 1, 49)
    cka = pd.DataFrame({"row": "a", "other": [f"b{n}" for n in range(49)], "seed": 0, "other_seed": 0,
                        "cka": values})  # fmt: skip
    r2 = pd.DataFrame({"row": [f"r{n}" for n in range(49)], "predicts": "pixel", "r2": values})
    with style():
        axes = compose(cka, r2, "small").axes[1]
    (shown,) = [one for one in axes.get_children() if isinstance(one, AxesImage)]
    assert len(axes.texts) == 49
    for text, value in zip(axes.texts, values, strict=True):
        cell = to_hex(tuple(shown.to_rgba(value)))
        assert contrast(str(text.get_color()), cell) >= 4.5
