"""What targets are like before training: figures whose values are known."""

import csv
import dataclasses
import math

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


def test_correlation_length__of_noise_and_of_a_slow_walk():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 64, 1, generator=generator)
    assert diagnose._correlation_length(noise, (8, 8)) == pytest.approx(1 - 1 / math.e, abs=0.05)
    steps = torch.randn(4000, 8, generator=generator)
    walk = [steps[:, 0]]
    for place in range(1, 8):  # correlation 0.8 ** lag: below 1/e between 4 and 5
        walk.append(0.8 * walk[-1] + 0.6 * steps[:, place])
    along = torch.stack(walk, 1)[:, None].expand(-1, 8, -1).reshape(4000, 64, 1)
    # the other direction is constant, so that correlations are means of 1 and 0.8 ** lag
    assert diagnose._correlation_length(along, (8, 8)) == 8
    alone = torch.stack(walk, 1)[:, :, None]
    assert diagnose._correlation_length(alone, (1, 8)) == pytest.approx(4.5, abs=0.3)


def test_high_frequency__of_a_slow_wave_a_chequerboard_and_noise():
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    slow = torch.sin(2 * math.pi * x / 8).reshape(1, 64, 1)
    board = ((-1.0) ** (x + y)).reshape(1, 64, 1)
    assert diagnose._high_frequency(slow, (8, 8)) < 1e-6
    assert diagnose._high_frequency(board, (8, 8)) == pytest.approx(1)
    noise = torch.randn(3000, 64, 1, generator=torch.Generator().manual_seed(0))
    high = 64 - 25  # of 8 x 8 frequencies those beyond 2 of 8 in either direction
    assert diagnose._high_frequency(noise, (8, 8)) == pytest.approx(high / 63, abs=0.01)


def test_class_share__of_noise_is_0_and_of_the_class_itself_1():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3000) % 10
    noise = torch.randn(3000, 4, 2, generator=generator)
    assert diagnose._class_share(noise, labels) == pytest.approx(0, abs=0.005)
    own = labels[:, None, None].float().expand(-1, 4, 2)
    assert diagnose._class_share(own, labels) == pytest.approx(1)
    mixed = own / own.std() + noise
    assert diagnose._class_share(mixed, labels) == pytest.approx(0.5, abs=0.02)
    assert diagnose._class_share(noise, None) is None


def test_write__replaces_a_targets_line_and_keeps_the_others(tmp_path):
    numbers = {field.name: 1.0 for field in dataclasses.fields(diagnose.Diagnosis)}
    for target, knn in (("hog", 0.1), ("pixel", 0.2), ("hog", 0.3)):
        one = diagnose.Diagnosis(**numbers | {"target": target, "knn": knn})
        path = diagnose.write_diagnosis(one, "tiny", tmp_path)
    assert [(row["target"], row["knn"]) for row in csv.DictReader(path.open())] == [
        ("pixel", "0.2"), ("hog", "0.3"),
    ]  # fmt: skip


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
