"""Encoders of finished runs compared: every pair and every target once, and drawn."""

import pandas as pd
import pytest
from conftest import SMALL
from PIL import Image

from mim_bench.analysis.figures.similarity import draw_similarity
from mim_bench.errors import UserError
from mim_bench.experiment.similarity import PIXELS, RANDOM, write_similarity
from mim_bench.experiment.sweep import sweep
from mim_bench.records import png_stamp, swept

FILE = """
title = "Two"
description = "two targets"
rebuilds = "nothing"
claim = "nothing"
seeds = [0, 1]
protocols = ["knn"]
[grid]
target = ["pixel", "dvae"]
"""


def test_similarity__of_every_two_runs_and_every_target(tmp_path):
    name = str(tmp_path / "two.toml")
    (tmp_path / "two.toml").write_text(FILE)
    out, results = tmp_path / "runs", tmp_path / "results"
    with pytest.raises(UserError, match=": 0; at least 2 are needed"):
        write_similarity(name, "tiny", out=out, results=results, overrides=SMALL)
    swept.remember(name, "tiny", results, SMALL)
    assert sweep(name, "tiny", out=out, results=results, overrides=SMALL, notify=print) == []
    paths = write_similarity(name, "tiny", out=out, results=results, overrides=SMALL)
    alike, known = map(pd.read_csv, paths)
    assert len(alike) == 6 and alike["cka"].between(0, 1).all()
    assert set(known["row"]) == {"pixel", "dvae", RANDOM, PIXELS}
    of_pixels = known.query("row == @PIXELS and predicts == 'pixel'")["r2"]
    assert of_pixels.item() == pytest.approx(1, abs=1e-4)  # they are the target
    assert len(known) == 2 * 4 + 2 * 2
    drawn = draw_similarity(name, "tiny", results, SMALL)
    assert png_stamp.read(drawn[0]) and Image.open(drawn[0]).size[0] > 1000
