"""Sweeps on a real Slurm, with jobs of seconds: submitted from a command line, watched, failed, tried again.

Most of it looks at one sweep of three rows: a plain one, one whose target must be fitted first, and one of
outside code that fails. It is submitted from a copy of the checkout that is broken right afterwards, so all
of it runs on the snapshot.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mim_bench.cli import options
from mim_bench.cli.main import main
from mim_bench.cluster.job import Job
from mim_bench.cluster.ledger import Ledger
from mim_bench.config import recipe
from mim_bench.records import store

HEAD = "title = 't'\ndescription = 'd'\nrebuilds = 'r'\nclaim = 'c'\nprotocols = ['knn']\nseeds = [0]\n"
MORE = HEAD.replace("['knn']", "['knn', 'linear']")
ROWS = """
[[variants]]
name = "plain"
set = { target = "pixel" }
[[variants]]
name = "fitted"
set = { target = "dvae", "dvae.fit_epochs" = 1, "dvae.width" = 4, "dvae.vocab_size" = 2 }
[[variants]]
name = "broken"
set = { target = "HOME/broken.toml" }
"""
BROKEN = """
import os
from pathlib import Path

from mim_bench.targets.pixel import PixelTarget


class Broken(PixelTarget):
    def forward(self, images):
        if "SLURM_JOB_ID" in os.environ and not Path(__file__).with_name("mended").exists():
            raise RuntimeError("broken on purpose")
        return super().forward(images)
"""
SEPARATE = "[grid]\ntarget = ['pixel']\n"
MANY = "[grid]\ntarget = ['pixel']\n'mask.ratio' = [0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8]\n"
CELL = [
    "data.limit_images=120", "model.embed_dim=24", "model.depth=2", "model.decoder_dim=16",
    "pretrain.epochs=1", "pretrain.batch_size=30", "pretrain.warmup_epochs=0", "linear.epochs=1",
    "linear.batch_size=60", "linear.warmup_epochs=0", "evaluate.batch_size=60", "runtime.device=cpu",
]  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SITE = "gpus_per_node = 1\ncpus_per_task = 1\nsetup = ['export SITE=here']\n[sbatch]\ncomment = 'from the file'\n"


@pytest.fixture(scope="module")
def home(slurm, tmp_path_factory) -> Iterator[Path]:
    """A user's folder: benchmarks, settings of the cluster, and code of their own on the path."""
    home = tmp_path_factory.mktemp("sweep")
    (home / "rows.toml").write_text(HEAD + ROWS.replace("HOME", str(home)))
    (home / "many.toml").write_text(HEAD + MANY)
    (home / "more.toml").write_text(MORE + MANY)
    (home / "separate.toml").write_text(HEAD.replace("[0]", "[0, 1, 2]") + SEPARATE)
    (home / "cluster.toml").write_text(SITE)
    (home / "outside").mkdir()
    (home / "outside" / "broken.py").write_text(BROKEN)
    (home / "broken.toml").write_text("class = 'broken:Broken'\npaper = 'p'\ndescription = 'd'\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(home / "outside")
        patch.setenv("PYTHONPATH", str(home / "outside"), prepend=os.pathsep)
        yield home


@pytest.fixture(scope="module")
def cli(home):
    """Runs the command line of a checkout in the user's folder -> what it prints."""

    def call(checkout: Path, *arguments: str) -> str:
        path = os.pathsep.join([str(checkout), os.environ["PYTHONPATH"]])
        done = subprocess.run(
            [sys.executable, "-m", "mim_bench", *arguments],
            cwd=home,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture(scope="module")
def here(home):
    """The same within this process, which is faster -> (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
            patch.chdir(home)
            patch.setattr(options.out_console, "file", out)
            patch.setattr(options.err_console, "file", err)
            with pytest.raises(SystemExit) as stop:
                main(list(arguments))
        return int(stop.value.code or 0), out.getvalue(), err.getvalue()

    return call


SWEEP = ("sweep", "rows.toml", "--cluster", "slurm")


@pytest.fixture(scope="module")
def swept(slurm, home, cli):
    """A sweep that has ended, submitted from a checkout that has been broken since -> what was printed."""
    checkout = home / "checkout"
    root = recipe.PACKAGE.parent
    for name in ("mim_bench", "targets", "benchmarks"):
        shutil.copytree(root / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(root / "pyproject.toml", checkout / "pyproject.toml")
    (checkout / "COMMIT").write_text(f"{COMMIT} dirty\n")
    planned = cli(checkout, *SWEEP, "--dry-run", "--device-tflops", "1", *CELL)
    assert not (home / "runs").exists() and not (home / "results").exists()
    out = cli(checkout, *SWEEP, *CELL)
    (checkout / "mim_bench" / "job.py").write_text(
        "raise RuntimeError('the checkout has changed')\n"
    )
    entries = Ledger(home / "runs").jobs()
    slurm.wait_for(lambda: not slurm.squeue("-j", ids(entries)), timeout_s=400)
    return planned, out, entries


def ids(entries: list[Job]) -> str:
    return ",".join(sorted({entry.job_id.partition("_")[0] for entry in entries}))


def records(home: Path, name: str = "rows") -> dict[tuple[str, str], store.CellRecord]:
    found = store.benchmark_records(str(home / f"{name}.toml"), "tiny", home / "results", CELL)
    return {(one.cell.label, one.record.protocol): one for one in found}


def test_sweep__jobs_put_their_records_into_the_results(swept, home):
    assert set(records(home)) == {("plain", "knn"), ("fitted", "knn")}


def test_snapshot__is_what_runs_and_what_records_name(swept, home):
    for found in records(home).values():
        assert (found.record.code.commit, found.record.code.dirty) == (COMMIT, True)
        assert found.record.command.startswith(
            "python -m mim_bench sweep rows.toml --cluster slurm"
        )


def test_fit__is_one_job_that_its_runs_wait_for(swept, slurm):
    fit, *runs = swept[2]
    assert (fit.kind, fit.label, fit.tasks) == ("fit", "fit dvae, seed 0", 1)
    assert [run.needs for run in runs] == [(), (), (fit.job_id,)]
    script = (Path(fit.folder) / f"{runs[-1].job_id}_submission.sh").read_text()
    assert f"#SBATCH --dependency=afterok:{fit.job_id}\n" in script


def test_gpus__are_requested_and_given(swept, slurm):
    given = slurm.command("sacct", "-nXP", "-j", ids(swept[2]), "-o", "AllocTRES").splitlines()
    assert len(given) == 4 and all("gres/gpu=1" in line for line in given)


def test_dry_run__shows_the_files_that_are_submitted(swept, home):
    planned, out, entries = swept
    assert "settings of the cluster read from cluster.toml" in planned
    assert "submitted 3 jobs and 1 fit in 3 sbatch files" in out
    texts = re.split(r"\n==== sbatch file \d of 3: ", planned)[1:]
    scripts = dict.fromkeys(entry.job_id.partition("_")[0] for entry in entries)
    for text, job_id in zip(texts, scripts, strict=True):
        submitted = (Path(entries[0].folder) / f"{job_id}_submission.sh").read_text()
        without = re.sub(r"(afterok:)\d+", r"\1<file 1 (fit dvae, seed 0)>", submitted)
        assert "--comment='from the file'" in submitted and "export SITE=here" in submitted
        shown = text[text.index("#!/bin/bash") :]
        assert shown.replace("'", "").startswith(without.replace("'", ""))
    assert "task 0: plain, seed 0: knn" in texts[1]


def test_status__shows_why_and_where_a_cell_failed(swept, here):
    code, out, _ = here("status", "rows.toml")
    assert code == 0 and "3 cells: 2 done, 1 failed" in out
    assert "RuntimeError: broken on purpose" in out
    assert f"`sweep rows.toml {' '.join(CELL)} --preset tiny --cluster slurm --retry-failed`" in out
    code, out, _ = here("status", "rows.toml", "--json")
    status = json.loads(out)
    assert status["counts"] == {"done": 2, "running": 0, "queued": 0, "failed": 1, "missing": 0}
    failed = next(row for row in status["cells"] if row["state"] == "failed")
    assert failed["label"] == "broken" and failed["missing"] == ["knn"]
    assert "broken on purpose" in Path(failed["log"]).read_text()


def test_same_command_again__submits_nothing_and_counts_the_failed(swept, home, here):
    before = Ledger(home / "runs").jobs()
    code, out, _ = here(*SWEEP, *CELL)
    assert code == 0 and "nothing to submit" in out
    assert "2 cells done before" in out and "1 cell failed before; --retry-failed" in out
    assert Ledger(home / "runs").jobs() == before


def test_retry_failed__tries_again_and_keeps_the_log(swept, slurm, home, here):
    failed = next(entry for entry in swept[2] if entry.label == "broken")
    (home / "outside" / "mended").touch()
    code, out, _ = here(*SWEEP, "--retry-failed", *CELL)
    assert code == 0 and "submitted 1 job in 1 sbatch file" in out
    again = Ledger(home / "runs").jobs()[-1]
    slurm.wait_for(lambda: not slurm.squeue("-j", ids([again])), timeout_s=400)
    assert ("broken", "knn") in records(home)
    log = Path(failed.folder) / f"{failed.job_id}_0_log.err"
    assert "broken on purpose" in log.read_text() and again.job_id != failed.job_id


def test_separate_evaluation__follows_each_pre_training(swept, slurm, home, here):
    """The first seed is the sweep's `plain`, whose pre-training is there, and whose record is taken over."""
    sweep = ("sweep", "separate.toml", "--cluster", "slurm", "--evaluate-separately", *CELL)
    code, out, err = here(*sweep)
    assert code == 0, err
    assert "1 cell done before" in out and "submitted 4 jobs in 2 sbatch files" in out
    entries = Ledger(home / "runs").jobs()[-4:]
    trainings, evaluations = entries[:2], entries[2:]
    assert [entry.protocols for entry in entries] == [(), (), ("knn",), ("knn",)]
    assert [entry.needs for entry in evaluations] == [(entry.job_id,) for entry in trainings]
    slurm.wait_for(lambda: not slurm.squeue("-j", ids(entries)), timeout_s=400)
    found = store.benchmark_records(str(home / "separate.toml"), "tiny", home / "results", CELL)
    assert [one.record.seed for one in found] == [0, 1, 2]
    script = (Path(entries[0].folder) / f"{ids(evaluations)}_submission.sh").read_text()
    assert f"--dependency=aftercorr:{ids(trainings)}\n" in script


LONG = [*CELL, "pretrain.epochs=1000000"]
"""Later words win: cells that end only when they are ended."""


@pytest.fixture(scope="module")
def crowded(slurm, home, here):
    """Seven cells in arrays of at most five, two at a time, both of them in training -> the jobs."""
    code, out, err = here("sweep", "many.toml", "--cluster", "slurm", "cluster.array=2", *LONG)
    assert code == 0, err
    assert "submitted 7 jobs in 2 sbatch files" in out
    entries = Ledger(home / "runs").jobs()[-7:]
    slurm.wait_for(lambda: len(list(Path(entries[0].folder).glob("*_progress.json"))) == 2, 400)
    slurm.wait_for(lambda: here("status", "many.toml")[1].count("images/s") == 2, 60)
    yield entries
    here("cancel", "more.toml")
    here("cancel", "many.toml")


def test_long_array__is_split_and_its_parts_keep_to_one_bound(crowded, slurm):
    first, second = sorted({entry.job_id.partition("_")[0] for entry in crowded}, key=int)
    sizes = [sum(e.job_id.startswith(f"{one}_") for e in crowded) for one in (first, second)]
    assert sizes == [slurm.max_array_size, 2]
    states = [job["state"] for job in slurm.squeue("-j", ids(crowded))]
    assert sorted(states) == ["PENDING"] * 5 + ["RUNNING"] * 2


def test_status__shows_the_progress_of_running_jobs(crowded, here):
    _, out, _ = here("status", "many.toml")
    assert "7 cells: 2 running, 5 queued" in out and "JobArrayTaskLimit" in out
    _, out, _ = here("status", "many.toml", "--json")
    progress = [row["progress"] for row in json.loads(out)["cells"] if row["state"] == "running"]
    assert all(one["stage"] == "pre-train pixel" and one["images_per_s"] > 0 for one in progress)
    assert all(0 < one["done_steps"] < one["num_steps"] == 4_000_000 for one in progress)


def test_queued_cell__is_not_submitted_again_nor_in_the_way_of_another_benchmark(
    crowded, slurm, home, here
):
    code, out, _ = here("sweep", "many.toml", "--cluster", "slurm", *LONG)
    assert code == 0 and "7 cells queued or running already" in out and "nothing to submit" in out
    code, out, _ = here("sweep", "more.toml", "--cluster", "slurm", *LONG)
    assert code == 0 and "7 cells queued or running already" in out and "submitted 7 jobs" in out
    entries = Ledger(home / "runs").jobs()[-7:]
    assert {entry.protocols for entry in entries} == {("linear",)}
    for mine, theirs in zip(entries, crowded, strict=True):
        script = (Path(mine.folder) / f"{mine.job_id}_submission.sh").read_text()
        assert mine.key == theirs.key and f"--dependency=afterany:{theirs.job_id}\n" in script
    code, out, _ = here("cancel", "more.toml")
    assert code == 0 and "cancelled 7 jobs" in out


def test_cancel__leaves_nothing_running(crowded, slurm, home, here):
    code, out, _ = here("cancel", "many.toml")
    assert code == 0 and "cancelled 7 jobs" in out
    slurm.wait_for(lambda: not slurm.squeue("-j", ids(crowded)))
    assert "cancelled 0 jobs" in here("cancel", "many.toml")[1]
    assert "7 cells: 7 missing" in here("status", "many.toml")[1]


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--gpus-per-node", "3", "Requested node configuration is not available"),
        ("--partition", "mian", "invalid partition specified: mian"),
    ],
)
def test_refused_job__is_reported_in_one_line(slurm, home, here, flag, value, said):
    before = Ledger(home / "runs").jobs()
    code, _, err = here("sweep", "many.toml", "--cluster", "slurm", flag, value, *CELL)
    assert (
        code == 2 and err.count("\n") == 1 and "error: sbatch refuses runs: " in err and said in err
    )
    assert Ledger(home / "runs").jobs() == before
