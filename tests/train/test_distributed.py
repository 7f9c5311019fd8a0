"""Two real ranks (torchrun, gloo) against one: the same draws, losses, scores; checkpoints fit either."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from safetensors.torch import load_file
from timm.layers import DropPath

from mim_bench.errors import UserError
from mim_bench.records import record
from mim_bench.train import distributed, environment, preemption
from mim_bench.train.log import read_log

TESTS = Path(__file__).parents[1]
TIMEOUT_S = 240


def launch(out, *args):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(TESTS / "ranks.py"), str(out), *args],
        capture_output=True, text=True, timeout=TIMEOUT_S, env=env,
    )  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    done = launch(out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def reports(two):
    return [json.loads((two / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    draws: dict[str, dict[str, str]] = {}
    restore = ranks.record_draws(draws)
    ranks.run(out, "whole", *ranks.WHOLE)
    restore()
    (out / "draws.json").write_text(json.dumps(draws))
    return out


def folder(out, name):
    (path,) = [p.parent for p in (out / name).glob("*/config.json")]
    return path


def losses(out, name, training="pretrain"):
    return [x["loss"] for x in read_log(folder(out, name) / f"{training}.jsonl") if "loss" in x]


def test_two_ranks__see_each_sample_once_with_the_draws_of_one(one, reports):
    alone = json.loads((one / "draws.json").read_text())
    assert len(alone) == 20
    for step, samples in alone.items():
        a, b = (rank["draws"][step] for rank in reports)
        assert len(a) == len(b) == 32 and not a.keys() & b.keys()
        assert a | b == samples
    for epoch in range(5):
        seen = [i for step in range(4 * epoch, 4 * epoch + 4) for i in alone[str(step)]]
        assert sorted(map(int, seen)) == list(range(256))


@pytest.mark.parametrize(
    ("name", "training"),
    [("whole", "pretrain"), ("whole", "finetune"), ("whole", "linear"), ("parts", "pretrain"),
     ("sharded", "pretrain"), ("sharded", "finetune")],
)  # fmt: skip
def test_two_ranks__have_the_losses_of_one(one, two, name, training):
    """Fine-tuning has mixup, CutMix and drop path; probing has BatchNorm; `parts` accumulates."""
    alone, together = losses(one, "whole", training), losses(two, name, training)
    assert len(alone) == len(together) >= 8
    assert together == pytest.approx(alone, rel=2e-4)


@pytest.mark.parametrize("target", ranks.FOLLOWERS)
def test_two_ranks__have_the_teacher_of_one(two, tmp_path, target):
    """With whole weights and with split ones."""
    ranks.run(tmp_path, target, *ranks.ONLY, target=target)
    alone = load_file(folder(tmp_path, target) / "target.safetensors")
    for name in (target, f"{target} split"):
        assert losses(two, name) == pytest.approx(losses(tmp_path, target), rel=2e-4)
        together = load_file(folder(two, name) / "target.safetensors")
        assert alone.keys() == together.keys() and len(alone) > 20
        for key, value in alone.items():
            # where a gradient is all but 0, AdamW makes steps of its rounding
            torch.testing.assert_close(together[key], value, rtol=1e-3, atol=3e-4)


def test_two_ranks__evaluate_every_image_once(one, two):
    for protocol in ("knn", "linear", "finetune"):
        paths = [folder(out, "whole") / "records" / f"{protocol}.json" for out in (one, two)]
        a, b = (record.read_correct(path) for path in paths)
        assert a.keys() == b.keys()
        for readout in a:
            assert a[readout].shape == b[readout].shape == (256,)
            assert np.mean(a[readout] != b[readout]) < 0.02
    alone, together = (
        record.read(folder(out, "whole") / "records/finetune.json") for out in (one, two)
    )
    assert together.curves["model"] == pytest.approx(alone.curves["model"], abs=0.05)
    assert (alone.device.count, together.device.count) == (1, 2)


def test_preempted_rank__makes_all_save_and_goes_on_bit_equal(two, reports):
    assert [rank["saved"] for rank in reports] == [["step-000000007"]] * 2
    whole, again = (ranks.weights(folder(two, name)) for name in ("whole", "again"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert losses(two, "again") == losses(two, "whole")


def test_sharded_checkpoint__is_the_full_one_and_goes_on_with_any_number_of_ranks(
    one, two, reports
):
    assert [rank["saved split"] for rank in reports] == [["step-000000007"]] * 2
    held = sum(rank["elements"][0] for rank in reports)
    total = reports[0]["elements"][1]
    assert max(rank["elements"][0] for rank in reports) < 0.6 * total and held == total
    ranks.run(two, "split_to_one", *ranks.ONLY)  # here is one rank only
    alone = losses(one, "whole")
    for name in ("split", "split_to_one"):
        assert losses(two, name) == pytest.approx(alone, rel=2e-4)
    names = ranks.weights(folder(one, "whole")).keys()
    assert ranks.weights(folder(two, "sharded")).keys() == names


def test_gradients__are_averaged_after_the_last_micro_batch_only(reports):
    first = [rank["gradients"][0] for rank in reports]
    last = [rank["gradients"][1] for rank in reports]
    assert first[0] != pytest.approx(first[1], rel=0.1)
    assert last[0] == pytest.approx(last[1]) == pytest.approx(sum(first))


def test_error_of_rank_0__is_raised_on_every_rank_and_reported_once(reports):
    assert reports[0]["error"] == [["UserError", "disk full", False], ["KeyError", "'x'", False]]
    assert reports[1]["error"] == [
        ["UserError", "disk full", True],
        ["RuntimeError", "KeyError('x')", True],
    ]


def test_dying_rank__ends_the_job_with_its_message(tmp_path):
    started = time.monotonic()
    done = launch(tmp_path, "die")
    assert done.returncode != 0 and time.monotonic() - started < 100
    assert "rank 1: error: image 7 cannot be read" in done.stderr
    assert "error: another process of this run ended" in done.stderr
    assert "internal error" not in done.stderr


def test_work_of_rank_0_alone__may_take_longer_than_the_timeout(tmp_path):
    done = launch(tmp_path, "wait")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["fitted"] * 2


# ---- without other ranks


def test_second_preemption_signal__does_not_disturb_the_first(monkeypatch):
    """submitit's handler writes a file, and has Slurm queue the job again, which takes seconds."""
    calls = []

    def handler(number, frame):
        calls.append(number)
        os.kill(os.getpid(), number)
        time.sleep(0.01)

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        with preemption.deferred():
            os.kill(os.getpid(), signal.SIGUSR2)
            assert calls == [signal.SIGUSR2]
            with preemption.training():
                os.kill(os.getpid(), signal.SIGUSR2)
                assert len(calls) == 1 and preemption.is_preempted()
                preemption.stop()
            assert len(calls) == 2
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_gpu_that_a_process_does_not_see__is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "local_rank", lambda: 1)
    with pytest.raises(UserError, match=r"process 1 of this machine \(from 0\) sees 1 GPU;"):
        environment.choose_device("auto")


# ---- arithmetic, with made-up ranks


@pytest.mark.parametrize(("num", "num_ranks"), [(64, 2), (64, 4), (12, 2), (6, 2), (6, 6), (8, 1)])
def test_local_batches__partition_the_batch_and_keep_mixup_partners(monkeypatch, num, num_ranks):
    batch = torch.arange(num)
    monkeypatch.setattr(distributed, "size", lambda: num_ranks)
    parts = []
    for rank in range(num_ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(distributed.local_batch(batch))
    assert sorted(torch.cat(parts).tolist()) == batch.tolist()
    assert {len(part) for part in parts} == {num // num_ranks}
    if num // num_ranks % 2 == 0:
        assert all(
            torch.equal(part + part.flip(0), torch.full_like(part, num - 1)) for part in parts
        )
    assert parts[0][0] == 0


def test_batch_that_cannot_be_split_over_ranks__is_an_error(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    with pytest.raises(
        UserError, match="= 64 cannot be split over 3 processes; allowed: multiples of 3"
    ):
        distributed.local_batch(torch.arange(64))


@pytest.mark.parametrize("num_batches", [1, 2, 5, 6])
def test_index_batches__count_each_batch_once_in_equal_steps(monkeypatch, num_batches):
    batches = [torch.tensor([i]) for i in range(num_batches)]
    monkeypatch.setattr(distributed, "size", lambda: 3)
    counted, lengths = [], set()
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        own, num = distributed.local_batches(batches)
        counted += [int(batch) for batch in own[:num]]
        lengths.add(len(own))
    assert sorted(counted) == list(range(num_batches)) and len(lengths) == 1


def test_drop_path__draws_as_one_process_would(monkeypatch):
    layer = torch.nn.Sequential(DropPath(0.5))
    x = torch.ones(8, 3, 2)
    torch.manual_seed(0)
    alone = layer(x)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    distributed.sync_drop_path(layer)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(0)
        assert torch.equal(layer(x[:4]), distributed.local_batch(alone))
    assert torch.equal(layer.eval()(x[:4]), x[:4])
