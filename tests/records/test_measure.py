"""Measures: every number of a record has one name, averaged over draws, with its control."""

import numpy as np
import pytest
from fake import fake_record

from mim_bench.config.cells import cells
from mim_bench.records.measure import measures

CELL = cells("targets", "tiny")[0]


def test_frozen_readouts__have_the_declared_one_first():
    record, _ = fake_record(CELL, "linear", 0.7)
    found = measures(record)
    assert list(found) == [
        "linear",
        "linear @ last/cls",
        "linear @ middle/cls",
        "linear @ middle/patch_mean",
    ]
    assert found["linear"].metrics[0].readout == "last/patch_mean"
    assert found["linear"].control == next(
        m.value for m in record.control if m.readout == "last/patch_mean"
    )


def test_draws_of_labels__are_averaged():
    record, correct = fake_record(CELL, "low_shot", 0.7)
    found = measures(record)["low_shot 1%"]
    each = [correct[f"last/patch_mean 1% draw {number}"] for number in range(3)]
    assert found.value == pytest.approx(np.mean(each))
    assert np.array_equal(found.of_images(correct), np.mean(each, axis=0))


def test_trained_blocks_and_times__have_names_of_their_own():
    partial, _ = fake_record(CELL, "partial", 0.7)
    assert list(measures(partial)) == ["partial 0.5", "partial 1", "partial 2"]
    speed, _ = fake_record(CELL, "speed", 0.7)
    found = measures(speed)
    assert not found["step_s"].is_accuracy and not found["step_s"].higher_is_better
    assert found["images_per_s"].higher_is_better
