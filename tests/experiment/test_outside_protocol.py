"""A protocol from outside the package: its spec alone gives it a column, a difference, a panel and a state."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import SMALL

from mim_bench.analysis import render, table
from mim_bench.analysis.figures import draw
from mim_bench.cluster.status import status
from mim_bench.config.benchmark import load_benchmark
from mim_bench.config.protocol import PROTOCOLS, ProtocolSpec
from mim_bench.config.resolve import load_config
from mim_bench.errors import UserError
from mim_bench.evaluate import features
from mim_bench.evaluate.context import EvalContext, ProtocolResult
from mim_bench.experiment import cost
from mim_bench.experiment.sweep import sweep
from mim_bench.records import store

SPEC = ProtocolSpec(
    name="centroid",
    description="nearest class mean on frozen features",
    version=3,
    function=f"{__name__}:run",
    has_control=True,
    has_readouts=True,
    heading="centroid",
    panel="nearest centroid",
)
BENCHMARK = """
title = "t"
description = "d"
rebuilds = "r"
claim = "c"
seeds = [0, 1]
protocols = ["centroid"]
[grid]
target = ["pixel", "norm_pixel"]
"mask.ratio" = [0.5, 0.75]
[figure]
x = "mask.ratio"
label = "mask ratio"
"""


def run(context: EvalContext) -> ProtocolResult:
    """Accuracy of the nearest class mean at every readout."""
    train, test = context.features.clean(context.data.train), context.features.clean(context.test)
    labels, truth = context.labels(context.data.train), context.labels(context.test)
    means = torch.stack([train[labels == label].mean(0) for label in range(10)])  # (K, R, D)
    return ProtocolResult(
        {
            name: (torch.cdist(test[:, r], means[:, r]).argmin(1) == truth).cpu().numpy()
            for r, name in enumerate(features.READOUTS)
        }
    )


@pytest.fixture
def centroid(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "centroid", SPEC)


def test_outside_protocol__goes_from_run_to_table_figure_and_status(centroid, tmp_path):
    path, results, runs = tmp_path / "b.toml", tmp_path / "results", tmp_path / "runs"
    path.write_text(BENCHMARK)
    overrides = ["pretrain.epochs=1", "pretrain.warmup_epochs=0", "evaluate.batch_size=60",
                 *(text for text in SMALL if not text.startswith("pretrain."))]  # fmt: skip
    failed = sweep(str(path), "tiny", out=runs, results=results, overrides=overrides,
                   notify=lambda line: None, command="test")  # fmt: skip
    assert failed == []
    records = [one.record for one in store.benchmark_records(str(path), "tiny", results, overrides)]
    assert len(records) == 8 and {record.protocol_version for record in records} == {3}
    assert all(record.control and len(record.metrics) == 4 for record in records)

    made = table.build(str(path), "tiny", results, overrides)
    grid = render.main_grid(made)
    assert {"centroid %", "Δ to pixel, ratio 0.5"} <= set(grid.headings)
    # an interval for each other row and for the control
    assert sum("[" in cell for row in grid.texts for cell in row) == 4
    assert "centroid last/cls %" in render.readout_grid(made).headings

    found = store.benchmark_records(str(path), "tiny", results, overrides)
    figures = draw.compose(load_benchmark(str(path)), found)
    assert [axes.get_title() for axes in figures["figure"].axes] == ["nearest centroid"]

    state = status(str(path), "tiny", out=runs, results=results, overrides=overrides)
    assert state.counts["done"] == 8


def test_outside_protocol__cost_is_at_least_its_features(centroid):
    config = load_config("pixel", "tiny", ["evaluate.protocols=centroid"])
    of_knn = load_config("pixel", "tiny", ["evaluate.protocols=knn"])
    estimates = [cost.estimate(each).protocol_flops for each in (config, of_knn)]
    assert 0 < estimates[0]["centroid"] < estimates[1]["knn"]


def test_unknown_protocol__is_named_with_the_nearest():
    with pytest.raises(
        UserError, match="unknown protocol 'centroid'; .*allowed: attentive, baselines"
    ):
        load_config("pixel", "tiny", ["evaluate.protocols=centroid"])


def test_protocol__whose_function_is_gone_is_named(monkeypatch):
    from mim_bench.evaluate.protocols import protocol_function

    monkeypatch.setitem(PROTOCOLS, "gone", SPEC.model_copy(update={"function": "no_such:run"}))
    with pytest.raises(UserError, match="protocol 'gone': no_such:run cannot be imported"):
        protocol_function("gone")


INSTALLED = """
from mim_bench.config.protocol import ProtocolSpec
from mim_bench.evaluate.context import ProtocolResult

SPEC = ProtocolSpec(name="always_nine", description="predicts class 9", function="their_protocol:run")


def run(context):
    return ProtocolResult({"all": context.labels(context.test).cpu().numpy() == 9})
"""


def test_entry_point__is_listed_and_run_and_a_broken_one_is_a_warning(tmp_path):
    """As pip leaves an installed package: a module, and metadata that names its spec."""
    info = tmp_path / "site" / "their_protocol-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "their_protocol.py").write_text(INSTALLED)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their_protocol\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[mim_bench.protocols]\nalways_nine = their_protocol:SPEC\nlost = gone:SPEC\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    command = [
        sys.executable, "-m", "mim_bench", "run", "--target", "pixel", "--protocols", "always_nine",
        "--limit-images", "64", "pretrain.epochs=1", "pretrain.warmup_epochs=0", "pretrain.batch_size=32",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "protocol 'lost' of gone:SPEC cannot be loaded" in done.stderr
    (record,) = (tmp_path / "runs").glob("*/records/always_nine.json")
    assert json.loads(record.read_text())["metrics"][0]["n"] == 64
