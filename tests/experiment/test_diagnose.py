"""What targets are like before training: figures whose values are known."""

import csv

import pytest
import torch
from conftest import SMALL
from typer.testing import CliRunner

from mim_bench.cli.main import app
from mim_bench.experiment import diagnose


def test_effective_dim__counts_the_directions_that_carry_the_variance():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20_000, 3, generator=generator)
    assert diagnose._effective_dim(rows) == pytest.approx(3, rel=0.01)
    assert diagnose._effective_dim(rows * torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(1)
    # fewer rows than values: by the other product
    wide = torch.randn(50, 400, generator=generator)
    centred = (wide - wide.mean(0)).double()
    eigenvalues = torch.linalg.svdvals(centred).square()
    wanted = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
    assert diagnose._effective_dim(wide) == pytest.approx(wanted)


def test_neighbour_correlation__of_columns_of_one_value_and_of_noise():
    noise = torch.randn(400, 16, 1, generator=torch.Generator().manual_seed(0))
    assert abs(diagnose._neighbours(noise, (4, 4))) < 0.05
    columns = noise.view(400, 4, 4)[:, :1].expand(-1, 4, -1).reshape(400, 16, 1)
    assert diagnose._neighbours(columns, (4, 4)) == pytest.approx(
        0.5, abs=0.05
    )  # all of half the pairs


def test_diagnose__has_a_row_a_target_and_leaves_out_what_follows_the_student(tmp_path):
    result = CliRunner().invoke(
        app,
        ["diagnose", "pixel", "mean_color", "ema_feature", *SMALL, "hog.num_bins=6",
         "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "ema_feature: left out" in result.output
    rows = list(csv.DictReader((tmp_path / "results/diagnose/tiny.csv").open()))
    assert [row["target"] for row in rows] == ["pixel", "mean_color"]
    pixel, color = rows
    assert pixel["perplexity"] == "" and 1 <= float(color["perplexity"]) <= 8
    assert color["copy_r2"] == "" and float(pixel["copy_r2"]) < 1
    for row in rows:
        assert 0 <= float(row["knn"]) <= 1 and 0 <= float(row["linear"]) <= 1
        assert (
            1 <= float(row["effective_dim"]) <= int(row["dim"]) and float(row["microseconds"]) > 0
        )
