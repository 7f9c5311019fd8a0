"""Learning curves beside their own file: every board gets every line, and Weights & Biases stays offline."""

import sys
import types

import pytest

from mim_bench.errors import UserError
from mim_bench.experiment.run import execute
from mim_bench.train import boards
from mim_bench.train.log import TrainingLog, read_log


class Kept:
    """A board that keeps what it is shown."""

    def __init__(self) -> None:
        self.points = []

    def add(self, curve, step, values):
        self.points.append((curve, step, dict(values)))


def test_every_board__is_shown_every_line(tmp_path):
    shown = (Kept(), Kept())
    log = TrainingLog(tmp_path / "pretrain.jsonl", 0, 10, shown)
    log.write(step=5, loss=1.0, lr=0.1)
    log.write(step=10, loss=0.5, lr=0.2)
    want = [("pretrain", 5, {"loss": 1.0, "lr": 0.1}), ("pretrain", 10, {"loss": 0.5, "lr": 0.2})]
    assert shown[0].points == shown[1].points == want
    assert [line["loss"] for line in read_log(tmp_path / "pretrain.jsonl")] == [1.0, 0.5]


@pytest.fixture
def fake_wandb(monkeypatch):
    """The calls that wandb would get."""
    calls = types.SimpleNamespace(init=[], points=[])
    run = types.SimpleNamespace(
        define_metric=lambda name, step_metric: None, log=calls.points.append
    )
    module = types.ModuleType("wandb")
    module.init = lambda **options: calls.init.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    boards._wandb_run.cache_clear()
    yield calls
    boards._wandb_run.cache_clear()


def test_weights_and_biases__is_one_offline_run_with_a_curve_a_training(
    small, tmp_path, fake_wandb
):
    config = small(
        "pixel", "evaluate.protocols=linear", "runtime.wandb=true", "runtime.log_every_steps=2"
    )
    folder = execute(config, out=tmp_path).folder
    first = fake_wandb.init[0]
    assert (
        first["mode"] == "offline" and first["dir"] == str(folder) and first["name"] == folder.name
    )
    assert first["config"]["target"]["name"] == "pixel"
    losses = [point["pretrain/loss"] for point in fake_wandb.points if "pretrain/loss" in point]
    assert losses == [
        line["loss"] for line in read_log(folder / "pretrain.jsonl") if "loss" in line
    ]
    assert any("linear/loss" in point for point in fake_wandb.points)


def test_missing_extra__is_one_line(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    boards._wandb_run.cache_clear()
    with pytest.raises(
        UserError, match=r"runtime.wandb needs Weights & Biases: pip install 'mim_bench\[wandb\]'"
    ):
        execute(small("pixel", "evaluate.protocols=[]", "runtime.wandb=true"), out=tmp_path)


def test_real_wandb__writes_below_the_run_and_needs_no_network(small, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    boards._wandb_run.cache_clear()
    folder = execute(
        small("pixel", "evaluate.protocols=[]", "runtime.wandb=true"), out=tmp_path
    ).folder
    boards._wandb_run(folder).finish()
    boards._wandb_run.cache_clear()
    written = list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(written) == 1 and written[0].stat().st_size > 500
