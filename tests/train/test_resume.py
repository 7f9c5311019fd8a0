"""Rule 10: stop a training anywhere, call it again, and the weights are bit-equal."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from PIL import Image

from mim_bench.data.run_data import complete, open_data
from mim_bench.errors import UserError
from mim_bench.evaluate.context import EvalContext, Features
from mim_bench.evaluate.protocols import protocol_function
from mim_bench.experiment.run import execute
from mim_bench.records.run_folder import read_config
from mim_bench.train import checkpoint, log, loop, preemption
from mim_bench.train.fit import fitted_target
from mim_bench.train.pretrain import pretrain

CPU = torch.device("cpu")


class Stop(Exception):
    """Raised in the middle of training, as a kill would."""


def stop_at(step: int) -> loop.Report:
    def report(done_steps: int, num_steps: int, images_per_s: float, loss: float) -> None:
        if done_steps == step:
            raise Stop

    return report


def prepared(config):
    data = open_data(config, CPU)
    return complete(config, data), data


def pretrained(config, folder, report=None):
    config, data = prepared(config)
    target = fitted_target(config, data, folder, CPU).target
    return pretrain(config, data, target, folder, CPU, report)[0].state_dict()


@pytest.mark.parametrize(
    ("target", "steps"),
    [
        *(("hog", steps) for steps in ((1,), (5,), (7, 9), (11,))),
        *(
            (target, (5, 9))
            for target in ("ema_feature", "bootstrap", "ema_token", "latent_cluster", "contrastive")
        ),
    ],
)
def test_pretraining__resumes_bit_equal(small, tmp_path, target, steps):
    config = small(
        target, "runtime.log_every_steps=1", "pretrain.accumulation_steps=2", "pretrain.clip_norm=1"
    )
    whole = pretrained(config, tmp_path / "whole")
    for step in steps:
        with pytest.raises(Stop):
            pretrained(config, tmp_path / "killed", stop_at(step))
    resumed = pretrained(config, tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [log.read_log(tmp_path / folder / "pretrain.jsonl") for folder in ("whole", "killed")]
    assert [(line["step"], line["loss"], line["lr"]) for line in logs[0]] == [
        (line["step"], line["loss"], line["lr"]) for line in logs[1]
    ]
    seconds = [line["seconds"] for line in logs[1]]
    assert seconds == sorted(seconds), "the time before each restart counts"


def test_checkpoint__by_time_is_written_within_an_epoch(small, tmp_path):
    by_time = ("runtime.checkpoint_every_epochs=none", "runtime.log_every_steps=1")
    for folder, minutes, saved in (("often", 0, [1, 2]), ("never", 60, [])):
        config = small("hog", *by_time, f"runtime.checkpoint_every_minutes={minutes}")
        with pytest.raises(Stop):
            pretrained(config, tmp_path / folder, stop_at(3))
        files = sorted((tmp_path / folder / "pretrain").glob("step-*"))
        assert [int(file.stem.removeprefix("step-")) for file in files] == saved
    config = small("hog", *by_time)
    resumed, whole = (pretrained(config, tmp_path / folder) for folder in ("often", "whole"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert len(list((tmp_path / "whole/pretrain").glob("step-*"))) == 1  # after the last step


@pytest.mark.parametrize("protocol", ["finetune", "linear"])
@pytest.mark.parametrize("step", [1, 4])
def test_protocol__resumes_bit_equal(small, tmp_path, protocol, step):
    from mim_bench.model.mae import build_encoder
    from mim_bench.targets.build import geometry

    overrides = ("runtime.log_every_steps=1", "linear.augment=true", "finetune.erasing=0.5")
    config, data = prepared(small("pixel", *overrides))
    encoder = build_encoder(config.model, geometry(config), seed=0)
    features = Features(config, data, encoder, CPU)
    finals = []
    for folder, stops in ((tmp_path / "whole", ()), (tmp_path / "killed", (step,))):
        for stop in stops:
            context = EvalContext(features, folder, "key", stop_at(stop))
            with pytest.raises(Stop):
                protocol_function(protocol)(context)
        answer = protocol_function(protocol)(EvalContext(features, folder, "key"))
        state = checkpoint.load_newest(folder / protocol, "key")
        assert state is not None
        finals.append((answer.correct, state.tensors))
    (correct, whole), (correct_again, resumed) = finals
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert all((correct[key] == correct_again[key]).all() for key in correct)


def test_killed_process__resumes_bit_equal(small, tmp_path):
    overrides = [*SMALL, "pretrain.epochs=40", "runtime.log_every_steps=1", "evaluate.protocols=[]"]
    command = [sys.executable, "-m", "mim_bench", "run", "--target", "norm_pixel", *overrides]
    config = small("norm_pixel", *overrides)
    # bit-equality is promised for one number of threads; conftest.py sets one here
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "killed")],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed/*/pretrain/step-*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("killed/*/encoder.safetensors")), (
        "killed too late to test anything"
    )
    ours = execute(config, out=tmp_path / "killed").folder
    whole = execute(config, out=tmp_path / "whole").folder
    a, b = (checkpoint.load_tensors(folder / "model.safetensors")[0] for folder in (ours, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_run__can_be_moved_between_interruptions(small, tmp_path):
    config = small("pixel", "runtime.log_every_steps=1")
    whole = execute(config, out=tmp_path / "a")
    assert not whole.was_finished
    again = execute(config, out=tmp_path / "a")
    assert again.was_finished
    assert [r.model_dump() for r in again.records] == [r.model_dump() for r in whole.records]
    moved = tmp_path / "moved"
    whole.folder.rename(moved)
    assert execute(config, out=moved).was_finished
    forced = execute(config, out=moved, force=True)
    assert not forced.was_finished
    assert [m.value for r in forced.records for m in r.metrics] == [
        m.value for r in whole.records for m in r.metrics
    ]


def test_damaged_checkpoint__is_named_and_the_older_one_used(small, tmp_path, caplog):
    config = small("pixel", "runtime.log_every_steps=1")
    whole = pretrained(config, tmp_path / "whole")
    with pytest.raises(Stop):
        pretrained(config, tmp_path / "killed", stop_at(10))
    files = sorted((tmp_path / "killed" / "pretrain").glob("*.safetensors"))
    assert [file.name for file in files] == [
        "step-000000004.safetensors",
        "step-000000008.safetensors",
    ]
    files[-1].write_bytes(files[-1].read_bytes()[:1000])
    resumed = pretrained(config, tmp_path / "killed")
    assert "step-000000008.safetensors" in caplog.text
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_foreign_checkpoint__is_refused_by_name(small, tmp_path, caplog):
    with pytest.raises(Stop):
        pretrained(
            small("pixel", "runtime.log_every_steps=1", "seed=1"), tmp_path / "a", stop_at(5)
        )
    fresh = pretrained(small("pixel"), tmp_path / "b")
    mixed = pretrained(small("pixel"), tmp_path / "a")
    assert "belongs to another training" in caplog.text
    assert all(torch.equal(fresh[name], mixed[name]) for name in fresh)


def test_refused_checkpoints_of_later_steps__do_not_push_out_new_ones(small, tmp_path):
    config = small("pixel", "runtime.log_every_steps=1")
    folder = tmp_path / "pretrain"
    with pytest.raises(Stop):
        pretrained(small("pixel", "runtime.log_every_steps=1", "seed=1"), tmp_path, stop_at(12))
    assert [file.name[-13:-12] for file in sorted(folder.iterdir())] == ["4", "8"]
    with pytest.raises(Stop):
        pretrained(config, tmp_path, stop_at(5))
    assert [file.name for file in folder.iterdir()] == ["step-000000004.safetensors"]
    assert checkpoint.load_newest(folder, prepared(config)[0].hash).step == 4


def test_flipped_checkpoint__is_refused(small, tmp_path):
    config = small("pixel", "runtime.log_every_steps=1")
    with pytest.raises(Stop):
        pretrained(config, tmp_path, stop_at(10))
    last = tmp_path / "pretrain" / "step-000000008.safetensors"
    content = bytearray(last.read_bytes())
    content[-3] ^= 1
    last.write_bytes(content)
    assert checkpoint.load_newest(last.parent, prepared(config)[0].hash).step == 4


def test_damaged_log__is_read_without_its_broken_lines(tmp_path, caplog):
    path = tmp_path / "pretrain.jsonl"
    whole = {"step": 1, "epoch": 0.5, "loss": 2.0}
    broken = ['{"step": 2', "[1]", "3", '{"step": "x", "epoch": 1}', '{"epoch": 1}', "[" * 10000]
    path.write_bytes("\n".join([json.dumps(whole), *broken]).encode() + b"\n\xff\n")
    assert log.read_log(path) == [whole]
    assert "broken line" in caplog.text


def test_non_finite_loss__stops_with_step_and_images(small, tmp_path, monkeypatch):
    config = small("pixel", "runtime.log_every_steps=3")
    from mim_bench.targets.pixel import PixelTarget

    loss = PixelTarget.loss
    calls = iter(range(100))  # the first is the check before step 0

    def broken(self, prediction, target):
        return loss(self, prediction, target) * (float("nan") if next(calls) == 5 else 1.0)

    monkeypatch.setattr(PixelTarget, "loss", broken)
    with pytest.raises(
        UserError, match=r"not finite at step 4 \(epoch 1, training images \d+, .*clip_norm"
    ):
        pretrained(config, tmp_path)
    newest = checkpoint.load_newest(
        tmp_path / "pretrain", complete(config, open_data(config, CPU)).hash
    )
    assert newest is not None and newest.step == 4  # written before the bad step


def test_full_disk__leaves_nothing_half_written(small, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        execute(small("pixel"), out=tmp_path)
    assert list(tmp_path.rglob("*.safetensors")) == []
    assert list(tmp_path.rglob("*.tmp")) == []


def test_folder_of_another_config__is_refused(small, tmp_path):
    folder = execute(small("pixel", "evaluate.protocols=[]"), out=tmp_path).folder
    with pytest.raises(UserError, match=r"different config \(mask\.ratio\)"):
        execute(small("pixel", "mask.ratio=0.25"), out=folder)
    weights = (folder / "model.safetensors").read_bytes()
    assert read_config(folder).mask.ratio == 0.5
    assert (folder / "model.safetensors").read_bytes() == weights


def test_changed_images__stop_a_run_that_began_on_others(small, tmp_path, monkeypatch, caplog):
    result = execute(small("pixel", "evaluate.protocols=[]"), out=tmp_path)
    path = result.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    (result.folder / "picture.png").unlink()
    manifest["code"]["commit"], manifest["device"]["kind"] = "0" * 40, "cuda"
    path.write_text(json.dumps(manifest))
    execute(small("pixel", "evaluate.protocols=[]"), out=tmp_path)
    assert "began at commit 000" in caplog.text and "not bit-equal" in caplog.text
    (result.folder / "picture.png").unlink()
    manifest["data"]["fingerprint"] = "f" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="began on other images"):
        execute(small("pixel", "evaluate.protocols=[]"), out=tmp_path)


def test_last_update__that_breaks_the_weights_is_an_error_and_nothing_is_saved(small, tmp_path):
    config = small(
        "pixel", "pretrain.epochs=1", "pretrain.batch_size=120", "pretrain.warmup_epochs=0",
        "pretrain.blr=1e300",
    )  # fmt: skip
    with pytest.raises(UserError, match="pretrain: the weights are not finite after step 1"):
        execute(config, out=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("records/*"))


def started(tmp_path, folder, *overrides, source="embedded"):
    """A run in a process of its own that has taken its first steps."""
    command = [sys.executable, "-m", "mim_bench", "run", "--target", "norm_pixel", *overrides]
    process = subprocess.Popen(
        [*command, "--data", source, "--out", str(tmp_path / folder)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        # a shell that puts the tests into the background has them ignore it, and all that they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in tmp_path.glob(f"{folder}/*/pretrain.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_process__saves_between_steps_and_resumes_bit_equal(small, tmp_path, number):
    overrides = [*SMALL, "pretrain.epochs=60", "runtime.log_every_steps=1", "evaluate.protocols=[]"]
    overrides += ["runtime.checkpoint_every_epochs=60"]  # so that what is there is of the signal
    process = started(tmp_path, "stopped", *overrides)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopping after this step" in err, err
    assert "the same command continues" in err
    assert list(tmp_path.glob("stopped/*/pretrain/step-*.safetensors"))
    config = small("norm_pixel", *overrides)
    ours = execute(config, out=tmp_path / "stopped").folder
    whole = execute(config, out=tmp_path / "whole").folder
    a, b = (checkpoint.load_tensors(folder / "model.safetensors")[0] for folder in (ours, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_process__leaves_no_reading_process(tmp_path, number):
    folder = tmp_path / "images"
    for i in range(60):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 50).save(folder / "ab"[i % 2] / f"{i}.png")
    overrides = ["pretrain.epochs=5000", "pretrain.batch_size=10", "pretrain.warmup_epochs=0"]
    overrides += ["runtime.log_every_steps=1", "runtime.memory_gb=1e-9", "runtime.num_workers=2"]
    process = started(tmp_path, "runs", *overrides, source=f"folder:{folder}")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if children.is_file() else []
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(workers) >= 2 and not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_signals__reach_another_thread_than_the_one_that_computes():
    received = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    try:
        with preemption.received_elsewhere():
            assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
            os.kill(os.getpid(), signal.SIGUSR1)
            deadline = time.monotonic() + 10
            while not received and time.monotonic() < deadline:
                time.sleep(0.01)
        assert received and signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGUSR1, before)
