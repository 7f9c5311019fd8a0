"""Replayed steps, with a recording that Python replays: the loop hands over all that changes from step to step."""

import logging

import pytest
import torch

from mim_bench.experiment.run import execute
from mim_bench.train import graph, loop


class Replayed(graph.StepGraph):
    """As on a GPU, but for the recording."""

    recorded = 0

    def _aside(self, inputs, drawn):
        return self.step(inputs, drawn)

    def _record(self, inputs, drawn):
        type(self).recorded += 1
        self.inputs, self.drawn = torch.empty_like(inputs), torch.empty_like(drawn)
        self.graph = self  # `replay` reads nothing but what was copied in

    def replay(self):
        self.loss = self.step(self.inputs, self.drawn)


@pytest.mark.parametrize("target", ["hog", "ema_feature"])
def test_replayed_steps__are_those_of_the_loop(small, tmp_path, monkeypatch, target):
    config = small(target, "evaluate.protocols=knn", "pretrain.clip_norm=1.0", "pretrain.epochs=3")
    plain = execute(config, out=tmp_path / "plain").folder
    monkeypatch.setattr(graph, "is_graphed", lambda device, runtime: True)
    monkeypatch.setattr(loop, "StepGraph", Replayed)
    monkeypatch.setattr(Replayed, "recorded", 0)
    replayed = execute(config, out=tmp_path / "replayed").folder
    # a teacher that follows the student is left out
    assert Replayed.recorded == (target == "hog")
    for name in ("pretrain.jsonl", "encoder.safetensors"):
        assert (replayed / name).stat().st_size > 0
    from mim_bench.train.checkpoint import load_tensors

    a, b = (load_tensors(folder / "encoder.safetensors")[0] for folder in (plain, replayed))
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=0, atol=1e-4
        )  # the learning rate is rounded to float32


def test_step_that_cannot_be_recorded__goes_on_and_says_so(monkeypatch, caplog):
    def step(inputs, drawn):
        loss = (inputs * weight).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def refuse(recording):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    made = graph.StepGraph(step, optimizer)
    monkeypatch.setattr(made, "_aside", step)
    with caplog.at_level(logging.WARNING):
        losses = [float(made(torch.ones(3), torch.zeros(1))) for _ in range(6)]
    assert losses == [3.0, 1.5, 0.0, -1.5, -3.0, -4.5]
    assert caplog.text.count("steps are not replayed: operation not permitted") == 1


def test_graphs__are_for_cuda_alone():
    from mim_bench.config.run import RuntimeConfig

    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert not graph.is_graphed(cpu, RuntimeConfig(graph="on"))
    assert graph.is_graphed(cuda, RuntimeConfig()) and not graph.is_graphed(
        cuda, RuntimeConfig(graph="off")
    )
