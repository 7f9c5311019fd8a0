"""What `diagnose` leaves behind: its figure, its place in the report."""

import pandas as pd
import pytest
from fake import fake_results

from mim_bench.analysis.figures.diagnose import compose, draw_diagnoses, trained_accuracies
from mim_bench.analysis.figures.panel import style
from mim_bench.analysis.report.page import write_report

TABLE = pd.DataFrame(
    {
        "target": ["hog", "pixel", "palette"],
        "dim": [27, 48, 256],
        "perplexity": [None, None, 80.5],
        "ridge_r2": [0.3, 0.6, None],
        "knn": [0.5, 0.45, 0.2],
        "linear": [0.47, 0.41, 0.2],
    }
)


@pytest.fixture
def results(tmp_path):
    fake_results("targets", "small", tmp_path, seeds=(0, 1))
    (tmp_path / "diagnose").mkdir()
    TABLE.to_csv(tmp_path / "diagnose" / "small.csv", index=False)
    return tmp_path


def test_figure__has_a_point_for_each_target_that_has_both_figures(results):
    trained = trained_accuracies("small", results)
    assert {name: len(runs) for name, runs in trained.items()} == dict.fromkeys(
        ("pixel", "norm_pixel", "hog", "dvae"), 2
    )
    with style():
        feature, encoder = compose(TABLE, trained, "small").axes
        alone = compose(TABLE, {}, "small").axes
    points = {line.get_label(): line.get_xydata()[0].tolist() for line in feature.lines}
    assert points == {"hog": [0.3, 47.0], "pixel": [0.6, 41.0]}
    named = {line.get_label() for line in encoder.lines}
    assert {"hog", "pixel"} <= named and "palette" not in named
    assert len(alone) == 1  # no encoder, no panel of encoders


def test_report__shows_the_table_and_the_figure_and_survives_a_damaged_file(results):
    draw_diagnoses(results / "diagnose" / "small.csv", "small", results)
    (results / "diagnose" / "tiny.csv").write_text("")
    said = []
    page = write_report(results, warn=said.append).read_text()
    assert "Targets before any training, preset small" in page and 'id="diagnose-small"' in page
    assert ">47.0</td>" in page and any("tiny.csv" in line for line in said)
