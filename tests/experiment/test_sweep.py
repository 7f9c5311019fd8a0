"""Sweeps: real runs of seconds; they continue, share runs between benchmarks, and outlive a failing cell."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL

from mim_bench.config.resolve import validated
from mim_bench.errors import UserError
from mim_bench.experiment import sweep
from mim_bench.records import pending, store
from mim_bench.records.run_folder import lock
from mim_bench.text import duration

HEAD = "title = 't'\ndescription = 'd'\nrebuilds = 'r'\nclaim = 'c'\n"
TWO = HEAD + "seeds = [0, 1]\nprotocols = ['knn']\n[grid]\ntarget = ['pixel', 'hog']\n"
ONE = HEAD + "seeds = [1]\nprotocols = ['knn', 'scratch']\n[grid]\ntarget = ['hog']\n"
CELL = ["evaluate.batch_size=60", *SMALL]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    home = tmp_path_factory.mktemp("sweep")
    (home / "two.toml").write_text(TWO)
    (home / "one.toml").write_text(ONE)
    told: list[str] = []

    def run(name="two", **options):
        return sweep.sweep(
            str(home / f"{name}.toml"), "tiny", out=home / "runs", results=home / "results",
            overrides=CELL, notify=told.append, command="test", **options,
        )  # fmt: skip

    assert run() == []
    return home, run, told


def found(home, name="two"):
    return store.benchmark_records(str(home / f"{name}.toml"), "tiny", home / "results", CELL)


def test_sweep__continues_with_what_has_no_record(swept):
    home, run, told = swept
    assert len(found(home)) == 4
    gone = [one for one in found(home) if one.record.target == "hog" and one.record.seed == 1]
    gone[0].path.unlink()
    told.clear()
    run()
    assert ["was done" in line for line in told] == [True, True, True, False]
    assert len(found(home)) == 4


def test_finished_cell__needs_no_run_folder(swept):
    home, run, told = swept
    shutil.rmtree(home / "runs", ignore_errors=True)
    told.clear()
    run()
    assert all("was done" in line for line in told) and not (home / "runs").exists()


def test_record_of_another_benchmark__is_taken_over_and_only_the_rest_is_run(swept):
    home, run, told = swept
    shutil.rmtree(home / "runs", ignore_errors=True)
    told.clear()
    run("one")
    shared = {one.record.protocol: one.record for one in found(home, "one")}
    assert set(shared) == {"knn", "scratch"}
    original = next(o.record for o in found(home) if (o.record.target, o.record.seed) == ("hog", 1))
    assert shared["knn"] == original
    assert not list((home / "runs").glob("*/pretrain.json"))  # scratch needs no pre-training


def test_chosen_protocols__leave_the_others_for_later(swept):
    home, run, told = swept
    shutil.rmtree(home / "results" / "one", ignore_errors=True)
    told.clear()
    run("one", protocols=["knn"])
    assert {one.record.protocol for one in found(home, "one")} == {"knn"}
    with pytest.raises(UserError, match="nearest: knn"):
        run("one", protocols=["kn"])


def test_lacking__is_what_a_job_has_still_to_make(swept):
    home, run, _ = swept
    run()
    records = home / "results" / "two" / "tiny" / "records"
    one = found(home)[0]
    assert pending.lacking(one.cell.config, records) == ()
    one.path.unlink()
    assert pending.lacking(one.cell.config, records) == ("knn",)
    elsewhere = home / "results" / "other" / "tiny" / "records"
    one = found(home)[0]
    assert pending.lacking(one.cell.config, elsewhere) == ()  # taken over
    assert [path.name for path in elsewhere.glob("*.json")] == [one.path.name]
    shutil.rmtree(home / "results" / "other")


def test_failing_cell__does_not_stop_the_others(swept, monkeypatch):
    home, run, told = swept
    from mim_bench.targets.pixel import PixelTarget

    for folder in (home / "runs", home / "results"):
        shutil.rmtree(folder, ignore_errors=True)
    monkeypatch.setattr(PixelTarget, "forward", lambda self, images: 1 / 0)
    told.clear()
    failed = run()
    assert [cell.config.target.name for cell in failed] == ["pixel", "pixel"]
    assert sum(": done:" in line for line in told) == 2
    logs = list((home / "runs" / "failed").glob("pixel-*.log"))
    assert len(logs) == 2 and "ZeroDivisionError" in logs[0].read_text()


def test_jobs__run_cells_side_by_side_on_their_share_of_the_cores(tmp_path):
    told: list[str] = []
    (tmp_path / "two.toml").write_text(TWO.replace("[0, 1]", "[0]"))
    failed = sweep.sweep(
        str(tmp_path / "two.toml"), "tiny", out=tmp_path / "runs", results=tmp_path / "results",
        overrides=CELL, jobs=2, notify=told.append, command="test",
    )  # fmt: skip
    assert failed == [] and len(told) == 2
    name = str(tmp_path / "two.toml")
    mine = store.benchmark_records(name, "tiny", tmp_path / "results", CELL)
    for one in mine:
        assert one.record.metrics and one.record.command == "test"
        assert one.record.device.cpu_threads == max(1, (os.cpu_count() or 1) // 2)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_sweep__leaves_no_process_behind(tmp_path, how):
    (tmp_path / "two.toml").write_text(TWO)
    command = [sys.executable, "-m", "mim_bench", "sweep", "two.toml", "--jobs", "2", *CELL,
               "pretrain.epochs=100000"]  # fmt: skip
    # also where SIGINT is ignored at the start, as in a job that a shell has put into the background
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        _wait(lambda: len(list(tmp_path.glob("runs/*/pretrain.jsonl"))) == 2)
        process.send_signal(how)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and "the same command continues" in err
        _wait(lambda: not _processes(tmp_path))
    finally:
        for pid in [process.pid, *_processes(tmp_path)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _processes(folder: Path) -> list[int]:
    """Those that name the folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in line:
            found.append(int(path.parent.name))
    return found


def _wait(is_so, seconds=240.0):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def test_published_benchmark__has_nothing_to_run(tmp_path):
    with pytest.raises(UserError, match="published rows only"):
        pending.list_pending("methods", "tiny", results=tmp_path)


def test_two_sweeps_of_one_out__leave_a_run_to_the_one_that_is_busy_with_it(swept):
    home, run, told = swept
    cell = found(home)[0]
    for path in (cell.path, cell.path.with_suffix(".npz")):
        path.unlink()
    config = validated(cell.record.config)
    (home / "runs" / config.run_id).mkdir(parents=True, exist_ok=True)
    for jobs in (None, 2):
        told.clear()
        with lock(home / "runs", config):
            assert run(jobs=jobs) == []
        assert any("left to another process" in line for line in told)
        assert not cell.path.exists()
    assert run() == [] and cell.path.exists()


def test_run_folder_that_is_deleted_meanwhile__is_an_error(small, tmp_path, monkeypatch):
    from mim_bench.experiment import run as runs

    evaluate = runs.evaluate

    def late(*arguments):
        shutil.rmtree(next(tmp_path.glob("pixel-*")))
        evaluate(*arguments)

    monkeypatch.setattr(runs, "evaluate", late)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        runs.execute(small("pixel", "evaluate.protocols=knn"), out=tmp_path)


def test_weights_of_equal_runs__are_equal_files(small, tmp_path):
    files = []
    for number in range(3):
        config = small("norm_pixel", "evaluate.protocols=none")
        arguments = [config.model_dump(mode="json"), str(tmp_path / str(number)), 1, "test"]
        code = "import json, sys; from mim_bench.experiment import sweep; sweep.run_config(*json.loads(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, json.dumps(arguments)], check=True)
        files.append(next((tmp_path / str(number)).glob("*/model.safetensors")).read_bytes())
    assert files[0] == files[1] == files[2]


def test_run_of_hours__says_so_before_it_starts(small, monkeypatch, tmp_path):
    from mim_bench.experiment import cost
    from mim_bench.experiment import run as runs

    monkeypatch.setattr(runs, "_LONG_FLOPS", 0)
    for speed, is_long in ((1e3, True), (1e12, False)):
        monkeypatch.setattr(cost, "device_speed", lambda config, data, speed=speed: speed)
        said = []
        config = small("pixel", "evaluate.protocols=none")
        runs.execute(config, out=tmp_path / str(speed), notify=said.append)
        assert any("this run will take about" in line for line in said) == is_long


def test_rest_of_a_run__is_what_its_estimate_counts(small, monkeypatch, tmp_path):
    from mim_bench.experiment import cost
    from mim_bench.experiment import run as runs

    monkeypatch.setattr(runs, "_LONG_FLOPS", 0)
    monkeypatch.setattr(cost, "device_speed", lambda config, data: 1e3)
    runs.execute(small("pixel", "evaluate.protocols=none"), out=tmp_path)
    lines = []
    config = small("pixel", "evaluate.protocols=knn")
    runs.execute(config, out=tmp_path, notify=lines.append)
    seconds = cost.estimate(config).protocol_flops["knn"] / 1e3
    assert f"this run will take about {duration(seconds)}" in lines


@pytest.mark.parametrize(
    ("named", "count", "wanted"),
    [("", 2, [0, 1]), ("3,5", 2, [3, 5]), ("", 0, []), ("GPU-1a", 1, [0])],
)
def test_jobs__get_the_gpus_that_the_process_may_use(monkeypatch, named, count, wanted):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert sweep.visible_gpus() == wanted
