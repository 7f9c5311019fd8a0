"""Sweeps on a cluster, as far as no Slurm is needed: settings, arrays, snapshot, ledger, states, sbatch files."""

import json
import os
import stat
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SMALL
from hypothesis import given
from hypothesis import strategies as st
from submitit.core.utils import cloudpickle_dump

from mim_bench.cli.cluster import local_jobs
from mim_bench.cli.main import main
from mim_bench.cluster import slurm, state
from mim_bench.cluster.batches import Batch, Dependency, arrays, split_limit
from mim_bench.cluster.job import Job, ProgressFile, progress_path
from mim_bench.cluster.ledger import Ledger
from mim_bench.cluster.plan import make_plan
from mim_bench.cluster.settings import Cluster, Size, check_batches, load_cluster
from mim_bench.cluster.snapshot import snapshot
from mim_bench.cluster.state import BenchmarkJobs
from mim_bench.cluster.status import cancel, status
from mim_bench.config import recipe
from mim_bench.errors import UserError
from mim_bench.experiment import cost
from mim_bench.experiment.request import SweepRequest
from mim_bench.experiment.run import execute
from mim_bench.records import pending, provenance, run_folder
from mim_bench.records.finished import fitted, pretrained
from mim_bench.records.run_folder import record_hash, sweep_key

CELL = ["evaluate.batch_size=60", *SMALL]
HEAD = "title = 't'\ndescription = 'd'\nrebuilds = 'r'\nclaim = 'c'\n"
FEW = HEAD + "seeds = [0, 1]\nprotocols = ['knn', 'speed']\n[grid]\ntarget = ['pixel', 'dvae']\n"


# ---- settings


def test_cluster_file__is_read_and_flags_beat_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_cluster(None, []) == (Cluster(), None)
    Path("cluster.toml").write_text("partition = 'gpu'\nnodes = 2\n[sbatch]\nexclude = 'n1'\n")
    cluster, path = load_cluster(None, ["cluster.nodes=4"])
    assert (cluster.partition, cluster.nodes, cluster.sbatch) == ("gpu", 4, {"exclude": "n1"})
    assert path == Path("cluster.toml")


def test_overrides__beat_the_file_field_by_field(tmp_path):
    (tmp_path / "site.toml").write_text("[sbatch]\nexclude = 'n1'\n[evaluate]\ncpus_per_task = 3\n")
    given = [
        "cluster.evaluate.nodes=2", "cluster.sbatch.exclusive=true", "cluster.sbatch.wckey=w[1-2]",
        "cluster.partition=none", "cluster.setup=module load cuda", "cluster.mem_gb=99.5",
    ]  # fmt: skip
    cluster, _ = load_cluster(tmp_path / "site.toml", given)
    assert (cluster.evaluation.nodes, cluster.evaluation.cpus_per_task) == (2, 3)
    assert cluster.sbatch == {"exclude": "n1", "exclusive": True, "wckey": "w[1-2]"}
    assert cluster.partition is None and cluster.setup == ("module load cuda",)
    assert cluster.mem_gb == 99.5
    with pytest.raises(UserError, match=r"unknown field 'cluster.nodez'; nearest: cluster.nodes"):
        load_cluster(None, ["cluster.nodez=2"])
    with pytest.raises(UserError, match="cluster: nodes='two': allowed: a valid integer"):
        load_cluster(None, ["cluster.nodes=two"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partiton = 'gpu'", "unknown field 'partiton'; nearest: partition"),
        ("[evaluate]\ngpus = 1", "unknown field 'evaluate.gpus'; nearest: evaluate.gpus_per_node"),
        ("nodes = 0", "nodes=0: allowed: greater than or equal to 1"),
        ("[evaluate]\nnodes = 'two'", "evaluate.nodes='two': allowed: a valid integer"),
        ("[sbatch]\ngpus-per-node = 8", "sbatch.gpus-per-node: a field of its own"),
        ("timeout_hours = 0.02", "signal_delay_s=120: allowed: below the 72 s"),
        ("nodes = ", "cannot be read"),
    ],
)
def test_cluster_file__what_is_wrong_is_named(tmp_path, text, said):
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(UserError) as error:
        load_cluster(tmp_path / "site.toml", [])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_sizes__fit_and_evaluation_have_one_process_and_its_memory():
    cluster = Cluster(nodes=2, gpus_per_node=8, cpus_per_task=12, mem_gb=500)
    assert (cluster.ranks, cluster.gpus) == (16, 16)
    assert cluster.single_process == Size(gpus_per_node=1, cpus_per_task=12, mem_gb=63)
    assert cluster.evaluation == cluster.single_process
    wider = cluster.model_copy(update={"evaluate": Size(gpus_per_node=4)})
    assert (wider.evaluation.ranks, wider.evaluation.cpus_per_task) == (4, 12)
    assert Cluster(nodes=2, tasks_per_node=3).ranks == 6
    assert Cluster().single_process == Size()


def test_batch_that_cannot_be_shared_out__is_refused(small):
    config = small("pixel", "pretrain.accumulation_steps=5")  # batch 30; linear 60
    check_batches(config, Cluster(nodes=2, tasks_per_node=3), separately=False)
    with pytest.raises(UserError, match="pretrain.batch_size=30 .* allowed: multiples of 20"):
        check_batches(config, Cluster(nodes=2, tasks_per_node=2), separately=False)
    # so that a training of days does not end in an evaluation that cannot begin
    config = small("pixel", "evaluate.protocols=finetune", "finetune.batch_size=32")
    check_batches(config, Cluster(nodes=2), separately=False)
    check_batches(config, Cluster(nodes=10), separately=True)
    with pytest.raises(UserError, match="finetune.batch_size=32 .* allowed: multiples of 10"):
        check_batches(config, Cluster(nodes=10), separately=False)
    config = small("pixel", "evaluate.protocols=scratch", "scratch.mixup=0.8")  # no pre-training
    with pytest.raises(UserError, match="scratch.batch_size=40 .* two by two .* multiples of 14"):
        check_batches(config, Cluster(nodes=7), separately=False)


def test_erasing__is_refused_on_several_processes(small):
    config = small("pixel", "evaluate.protocols=finetune", "finetune.erasing=0.25")
    check_batches(config, Cluster(), separately=False)
    with pytest.raises(
        UserError, match="finetune.erasing=0.25: .* allowed: 0, or a single process"
    ):
        check_batches(config, Cluster(nodes=2), separately=False)


def test_all_benchmarks__are_for_a_dry_run(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "all", "--cluster", "slurm"])
    assert stop.value.code == 2 and "'all' is for --dry-run" in capsys.readouterr().err


def test_cells_of_one_run__do_not_stop_each_other(small, monkeypatch):
    ran = []

    def run(self, config, stages):
        ran.append(config.seed)
        if config.seed == 0:
            raise ValueError("the first")
        return "folder"

    monkeypatch.setattr(Job, "_cell", run)
    monkeypatch.setattr("mim_bench.cluster.job._in_job", lambda *_: nullcontext())
    configs = tuple(small("pixel", f"seed={seed}").model_dump(mode="json") for seed in (0, 1))
    with pytest.raises(ValueError, match="the first"):
        job(0, configs=configs)()
    assert ran == [0, 1]
    assert job(0, configs=configs[1:])() == "folder"


# ---- arrays


@given(st.integers(1, 40), st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_split_limit__keeps_to_the_bound_and_uses_all_of_it(max_running, sizes):
    limits = split_limit(max_running, sizes)
    assert all(1 <= limit <= size for limit, size in zip(limits, sizes, strict=True))
    assert sum(limits) == max(len(sizes), min(max_running, sum(sizes)))


def job(number: int, **fields) -> Job:
    values = {
        "kind": "run", "benchmark": "b", "preset": "tiny", "overrides": (), "label": "hog",
        "seed": number, "key": "k", "folder": "f", "tasks": 1, "snapshot": "s",
        "submitted": "2026-01-05T10:00:00+00:00",
    }  # fmt: skip
    return Job.model_validate(values | fields)


def batches(sizes: list[int], max_running: int | None, *, separately: bool = False) -> list[Batch]:
    groups = [[Batch("runs", tuple(map(job, range(size))), Size())] for size in sizes]
    if separately:
        groups = [[training, training] for (training,) in groups]
    return arrays([], groups, max_size=5, max_running=max_running)


def test_arrays__are_split_at_the_largest_size_and_keep_every_run():
    found = batches([7, 3], None)
    assert [len(batch.jobs) for batch in found] == [5, 2, 3]
    assert [job.seed for batch in found[:2] for job in batch.jobs] == list(range(7))
    assert [batch.max_running for batch in found] == [5, 2, 3]
    assert not any(batch.dependencies for batch in found)
    assert [batch.max_running for batch in batches([7, 3], 6)] == [2, 2, 2]


def test_more_arrays_than_may_run__take_turns():
    found = batches([7, 3, 1], 2)
    assert [batch.max_running for batch in found] == [1, 1, 1, 1]
    turns = [[other.batch for other in batch.dependencies] for batch in found]
    assert turns == [[], [], [0], [1]]
    assert {other.type for batch in found for other in batch.dependencies} == {"afterany"}


def test_evaluations__wait_task_by_task_for_the_array_before_them():
    found = batches([6], None, separately=True)
    waits = [[(other.type, other.batch) for other in batch.dependencies] for batch in found]
    assert waits == [[], [("aftercorr", 0)], [], [("afterok", 2)]]
    assert [len(batch.jobs) for batch in found] == [5, 5, 1, 1]


def test_fits__come_first_and_indices_count_them():
    fit = Batch("fit dvae", (job(0),), Size())
    waiting = Batch("runs", (job(0),), Size(), (Dependency("afterok", batch=0),))
    other = Batch("runs", (job(1),), Size())
    found = arrays([fit], [[waiting], [other]], max_size=5, max_running=1)
    assert found[0] is fit
    assert [wait.batch for wait in found[1].dependencies] == [0]
    assert [wait.batch for wait in found[2].dependencies] == [1]


# ---- snapshot


def test_snapshot__holds_code_recipes_and_commit(tmp_path):
    found = snapshot(tmp_path)
    assert not (tmp_path / "code").exists()
    found.write()
    code = provenance.code()
    assert found.folder.parent == tmp_path / "code"
    assert found.folder.name.startswith(f"{code.commit[:12]}-")
    for path in (
        "mim_bench/cluster/job.py",
        "targets/hog.toml",
        "benchmarks/targets.toml",
        "pyproject.toml",
    ):
        copied = (found.folder / path).read_bytes()
        assert copied == (recipe.PACKAGE.parent / path).read_bytes()
    assert not list(found.folder.rglob("__pycache__")) and not list(tmp_path.glob("code/.*"))
    commit = (found.folder / "COMMIT").read_text().strip()
    assert commit == (f"{code.commit} dirty" if code.dirty else code.commit)


def test_snapshot__same_code_is_kept_once_and_other_code_separately(tmp_path, monkeypatch):
    package = tmp_path / "site" / "mim_bench"
    (package / "_shipped" / "targets").mkdir(parents=True)
    (package / "job.py").write_text("one = 1\n")
    (package / "_shipped" / "targets" / "hog.toml").write_text("")
    monkeypatch.setattr(recipe, "PACKAGE", package)  # as a wheel has it
    first = snapshot(tmp_path)
    first.write()
    there = {
        path.relative_to(first.folder).as_posix()
        for path in first.folder.rglob("*")
        if path.is_file()
    }
    assert there == {"COMMIT", "mim_bench/job.py", "mim_bench/_shipped/targets/hog.toml"}
    (first.folder / "mark").touch()
    snapshot(tmp_path).write()
    assert (first.folder / "mark").exists()
    (package / "job.py").write_text("one = 2\n")
    other = snapshot(tmp_path)
    other.write()
    assert (
        other.folder != first.folder
        and (first.folder / "mim_bench/job.py").read_text() == "one = 1\n"
    )


def test_snapshot__comes_first_on_a_jobs_path_and_the_submitters_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/their code:/more")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # as `python -m` has it
    found = snapshot(tmp_path)
    safe, path = found.setup()
    assert safe == "export PYTHONSAFEPATH=1"
    started = f"export PYTHONPATH={found.folder}:{tmp_path}:'/their code':/more"
    assert path.startswith(started)


# ---- what is finished already


def test_finished__pre_training_and_fit_are_found_by_config(small, tmp_path):
    fit = ("dvae.fit_epochs=1", "dvae.width=4", "dvae.vocab_size=16")
    config = small("dvae", *fit, "evaluate.protocols=[]", "pretrain.epochs=1")
    other = small("dvae", *fit, "evaluate.protocols=[]", "pretrain.epochs=2")
    assert pretrained(tmp_path, [config, other]) == set() and not fitted(tmp_path, config)
    execute(config, out=tmp_path)
    assert pretrained(tmp_path, [config, other]) == {config.hash}
    assert fitted(tmp_path, other)
    assert not fitted(tmp_path, small("dvae", *fit, "dvae.fit_epochs=2"))
    next(tmp_path.glob("fits/*.safetensors")).unlink()
    assert not fitted(tmp_path, other)


# ---- what is submitted


@pytest.fixture
def sweep_request(tmp_path, monkeypatch) -> SweepRequest:
    monkeypatch.setenv("PATH", str(tmp_path / "no-slurm"))
    (tmp_path / "few.toml").write_text(FEW)
    return SweepRequest(
        str(tmp_path / "few.toml"), "tiny", tmp_path / "runs", tmp_path / "results", tuple(CELL)
    )


def test_submission__one_job_a_run_and_one_fit_for_the_runs_of_a_seed(sweep_request):
    found = make_plan(sweep_request, Cluster(array=3))
    fits = ["fit dvae, seed 0", "fit dvae, seed 1"]
    assert [batch.title for batch in found.batches] == [*fits, "runs", "runs", "runs"]
    assert [[one.title for one in batch.jobs] for batch in found.batches[2:]] == [
        ["pixel, seed 0: knn", "pixel, seed 1: knn"],
        ["dvae, seed 0: knn"],
        ["dvae, seed 1: knn"],
    ]
    for place, batch in enumerate(found.batches[3:]):
        assert batch.dependencies == (Dependency("afterok", batch=place),)
    assert any("speed: left out" in note and "--protocols speed" in note for note in found.notes)


def test_script__has_every_setting(sweep_request):
    cluster = Cluster(
        partition="gpu", account="vision", qos="long", constraint="a100", nodes=2, gpus_per_node=3,
        cpus_per_task=12, mem_gb=99.5, timeout_hours=1.5, signal_delay_s=200, array=3,
        setup=("module load cuda",), sbatch={"exclude": "n1", "exclusive": True, "wckey": "w"},
    )  # fmt: skip
    found = make_plan(sweep_request, cluster)
    assert len(found.batches) == 5
    fit, runs = found.script(found.batches[0]), found.script(found.batches[2])
    for line in (
        "--partition=gpu", "--account=vision", "--qos=long", "--constraint=a100", "--nodes=2",
        "--gpus-per-node=3", "--ntasks-per-node=3", "--cpus-per-task=12", "--mem=101888M", "--time=90",
        "--signal=USR2@200", "--exclude=n1", "--exclusive", "--wckey=w", "--requeue",
        "--kill-on-invalid-dep=yes", "--array=0-1%1",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in runs
    waiting = found.script(found.batches[4])
    assert "#SBATCH --dependency='afterok:<file 2 (fit dvae, seed 1)>'\n" in waiting
    assert "module load cuda\nexport PYTHONSAFEPATH=1\nexport PYTHONPATH=" in runs
    assert " --kill-on-bad-exit=1 --cpus-per-task=12 " in runs
    for line in ("--nodes=1", "--gpus-per-node=1", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}\n" in fit
    assert "--array" not in fit and "--dependency" not in fit


def test_separate_evaluations__need_no_pre_training_that_is_there(sweep_request):
    from dataclasses import replace

    from mim_bench.config.cells import cells

    first = cells(sweep_request.name, "tiny", CELL)[0].config
    alone = first.evaluate.model_copy(update={"protocols": ()})
    execute(first.model_copy(update={"evaluate": alone}), out=sweep_request.out)
    found = make_plan(replace(sweep_request, evaluate_separately=True), Cluster(nodes=2))
    assert [(batch.title, len(batch.jobs), batch.size.nodes) for batch in found.batches] == [
        ("fit dvae, seed 0", 1, 1),
        ("fit dvae, seed 1", 1, 1),
        ("evaluations", 1, 1),
        ("pre-trainings", 1, 2),
        ("evaluations", 1, 1),
        ("pre-trainings", 1, 2),
        ("evaluations", 1, 1),
        ("pre-trainings", 1, 2),
        ("evaluations", 1, 1),
    ]
    assert found.batches[2].jobs[0].title == "pixel, seed 0: knn"
    assert not found.batches[2].dependencies


def test_dry_run__shows_files_without_a_slurm_and_writes_nothing(
    sweep_request, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    command = ["sweep", "few.toml", "--cluster", "slurm", "--dry-run", "--device-tflops", "1"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--gpus", "4", "--nodes", "2", *CELL])
    out = capsys.readouterr().out
    assert (
        not stop.value.code and "4 jobs and 2 fits in 5 sbatch files; nothing was submitted" in out
    )
    assert out.count("#!/bin/bash") == 5 and "task 1: pixel, seed 1: knn" in out
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("flag", ["--evaluate-separately", "--evaluate-apart"])
def test_flag_and_its_former_name__separate_evaluations(sweep_request, tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    plans = []
    monkeypatch.setattr(
        "mim_bench.cluster.submit.submit",
        lambda *given: plans.append(make_plan(*given)) or plans[0],
    )
    options = ["--cluster", "slurm", "--nodes", "2", "cluster.nodes=5", "cluster.evaluate.nodes=3"]
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "few.toml", flag, *options, *CELL])
    assert not stop.value.code
    sizes = {batch.title: batch.size.nodes for batch in plans[0].batches}
    assert sizes == {
        "fit dvae, seed 0": 1,
        "fit dvae, seed 1": 1,
        "pre-trainings": 5,
        "evaluations": 3,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cluster", "slurm"], "cluster slurm: no `sbatch` on this machine"),
        (["cluster.nodes=2"], "cluster.nodes=2 needs --cluster slurm"),
        (["--evaluate-apart"], "--evaluate-separately needs --cluster slurm"),
        (["--cluster", "slrm"], "cluster=slrm: nearest: slurm"),
        (["--nodes", "2"], "cluster.nodes=2 needs --cluster slurm"),
        (["--cluster", "slurm", "--gpus", "8"], "gpus=8 needs --dry-run; a job's size is --nodes"),
        (["--retry-failed", "--cluster", "local"], "--retry-failed needs --cluster slurm"),
        (["--cluster", "slurm", "--jobs", "2"], "jobs=2 is not for cluster=slurm"),
        (["--cluster", "debug", "--jobs", "2"], "jobs=2 is not for cluster=debug"),
        (
            ["--cluster", "slurm", "--cluster-file", "no.toml"],
            "cluster file no.toml cannot be read",
        ),
        (
            ["--cluster", "slurm", "--dry-run", "--nodes", "7", "--device-tflops", "1"],
            "multiples of 7",
        ),
    ],
)
def test_sweep__refuses_what_does_not_go_together(
    sweep_request, tmp_path, capsys, monkeypatch, arguments, said
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "few.toml", *arguments, *CELL])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and said in err


def test_sweep__is_not_started_by_a_launcher_of_several_processes(
    sweep_request, capsys, monkeypatch
):
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    for rank, said in (("0", "error: sweep is one process"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stop:
            main(["sweep", sweep_request.name])
        err = capsys.readouterr().err
        assert stop.value.code == 2 and said in err and bool(err) == bool(said)


def test_jobs__are_processes_of_this_machine_where_the_cluster_is_local():
    given = [
        (None, None),
        (None, "1"),
        (None, "3"),
        ("debug", None),
        ("local", None),
        ("local", "2"),
    ]
    assert [local_jobs(*choice) for choice in given] == [None, None, 3, None, 1, 2]


def test_cancel__needs_a_slurm(sweep_request, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["cancel", "few.toml", "--out", str(tmp_path)])
    assert stop.value.code == 2 and "ends by Ctrl-C" in capsys.readouterr().err
    Ledger(tmp_path).folder.mkdir()
    Ledger(tmp_path).append([job(0, job_id="1")])
    with pytest.raises(UserError, match="no `sbatch`"):
        cancel("b", out=tmp_path)


def test_status__shows_what_a_process_of_this_machine_is_busy_with(sweep_request, tmp_path):
    tasks = pending.list_pending(
        sweep_request.name, "tiny", results=sweep_request.results, overrides=CELL, copy=False
    )
    config = cost.sized(tasks[0].cell.config)
    (sweep_request.out / config.run_id).mkdir(parents=True)
    (sweep_request.out / config.run_id / "config.json").write_text(config.model_dump_json())

    def states_now():
        shown = status(
            sweep_request.name,
            "tiny",
            out=sweep_request.out,
            results=sweep_request.results,
            overrides=CELL,
        )
        return [row.state for row in shown.cells], shown.cells[0].detail

    folder, epochs = sweep_request.out / config.run_id, config.pretrain.epochs
    assert set(states_now()[0]) == {"missing"}
    with run_folder.lock(sweep_request.out, config):
        states, detail = states_now()
        assert states == ["running"] + ["missing"] * (len(tasks) - 1) and detail == "starting"
        line = {"step": 50, "epoch": epochs / 4, "images_per_s": 1234.0, "seconds": 600.0}
        (folder / "pretrain.jsonl").write_text(json.dumps(line | {"epoch": epochs}) + "\n")
        assert states_now()[1] == "evaluating, pretrain is done"
        (folder / "pretrain.jsonl").write_text(json.dumps(line) + "\n")
        assert states_now()[1] == "pretrain: step 50 of 200, 1,234 images/s, 30 min left"
        (folder / "pretrain.jsonl").write_text('{"step": 5')  # a line on its way
        assert states_now()[1] == "starting"
    assert set(states_now()[0]) == {"missing"}


# ---- ledger and states


def test_ledger__gives_back_what_was_appended_and_names_a_damaged_line(tmp_path):
    ledger, jobs = Ledger(tmp_path), [job(1, job_id="1"), job(2, job_id="2")]
    assert ledger.jobs() == []
    with ledger.lock():
        ledger.append([job(1, job_id="1", configs=({"seed": 1},), command="not in the ledger")])
        ledger.append(jobs[1:])
    assert ledger.jobs() == jobs
    ledger.path.write_text(ledger.path.read_text() + "{}\n")
    with pytest.raises(UserError, match=r"jobs.jsonl, line 3 is damaged"):
        ledger.jobs()


def test_ledger__reads_lines_of_earlier_versions(tmp_path):
    line = (
        '{"kind":"run","benchmark":"few","preset":"tiny","overrides":["seed=1"],"label":"hog","seed":1,'
        '"key":"k","protocols":["knn"],"records":["r"],"needs":["3"],"job_id":"4_0","folder":"f","tasks":2,'
        '"snapshot":"s","submitted":"2026-01-01T00:00:00+00:00"}'
    )
    ledger = Ledger(tmp_path)
    ledger.folder.mkdir()
    ledger.path.write_text(line + "\n")
    (old,) = ledger.jobs()
    assert (old.job_id, old.needs, old.title) == ("4_0", ("3",), "hog, seed 1: knn")
    assert json.loads(old.model_dump_json()) == json.loads(line) | {"cluster": ""}


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands: `answers(squeue=..., sacct=...)`; unset: the command fails."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "bin").mkdir()

    def full(lines: str, detail: str) -> str:
        """`id|state|detail` of a line -> with user, submit time and name as they are of our jobs."""
        parts = (line.split("|") for line in lines.splitlines())
        mine = f"{os.getuid()}|2026-02-03T04:05:06"
        return "\n".join(
            f"{i}|{said}|{mine}|{rest or detail}|mim_bench-b" for i, said, rest in parts
        )

    def give(squeue: str, sacct: str | None) -> None:
        texts = {"squeue": full(squeue, "None"), "sacct": sacct and full(sacct, "0:0")}
        texts |= {"sbatch": "", "scancel": "", "srun": ""}
        for name, text in texts.items():
            command, answer = tmp_path / "bin" / name, tmp_path / "bin" / f"{name}.txt"
            answer.write_text(f"{text}\n" if text else "")
            command.write_text(
                "#!/bin/sh\nexit 1\n" if text is None else f"#!/bin/sh\n/bin/cat '{answer}'\n"
            )
            command.chmod(command.stat().st_mode | stat.S_IXUSR)

    return give


def submitted(tmp_path: Path, job_id: str, tasks: int = 1, **outcomes: tuple[str, str]) -> Job:
    """`_0=("error", "trace")`: what its process 0 left."""
    for task, outcome in outcomes.items():
        cloudpickle_dump(outcome, tmp_path / f"{job_id}{task}_result.pkl")
    return job(0, job_id=job_id, folder=str(tmp_path), tasks=tasks)


OK, ERROR = ("success", "x"), ("error", "Traceback\n  first\nValueError: no\n")


def states(*jobs: Job) -> dict[str, str]:
    return {job_id: found.name for job_id, found in state.job_states(jobs).items()}


def test_states__the_queue_beats_what_an_earlier_attempt_left(answers, tmp_path):
    answers("7_0|PENDING|BeginTime\n7_1|RUNNING|None\n8|COMPLETING|None", "")
    entries = [
        submitted(tmp_path, "7_0", 2, _1=ERROR),
        submitted(tmp_path, "7_1", _0=ERROR),
        submitted(tmp_path, "7_2", _0=OK),
        submitted(tmp_path, "8"),
    ]
    found = {"7_0": "queued", "7_1": "running", "7_2": "finished", "8": "running"}
    assert states(*entries) == found
    assert state.job_states(entries)["7_0"].reason == "BeginTime"


def test_states__sacct_covers_jobs_without_a_result(answers, tmp_path):
    said = [
        "1|TIMEOUT|n",
        "2|CANCELLED by 0|n",
        "3|NODE_FAIL|n",
        "4|PREEMPTED|n",
        "5|CANCELLED by 0|n",
    ]
    answers("", "\n".join(said))
    entries = [submitted(tmp_path, one) for one in "1234"] + [submitted(tmp_path, "5", 2, _1=ERROR)]
    assert states(*entries) == {
        "1": "failed", "2": "cancelled", "3": "failed", "4": "vanished", "5": "cancelled",
    }  # fmt: skip


def test_states__without_sacct_the_result_counts_else_the_job_has_vanished(answers, tmp_path):
    answers("", None)
    entries = [
        submitted(tmp_path, "1", _0=OK),
        submitted(tmp_path, "2", _0=ERROR),
        submitted(tmp_path, "3"),
    ]
    assert states(*entries) == {"1": "finished", "2": "failed", "3": "vanished"}


def test_run_whose_fit_failed__has_failed_and_one_that_was_cancelled_is_missing(
    sweep_request, answers, tmp_path
):
    said = ["1|FAILED|n", "2|CANCELLED by 0|n", "3|CANCELLED by 0|n", "4|RUNNING|n", "5|RUNNING|n"]
    answers("4|RUNNING|None\n5|PENDING|Dependency", "\n".join(said))
    tasks = pending.list_pending(
        sweep_request.name,
        "tiny",
        results=sweep_request.results,
        overrides=CELL,
        protocols=["knn"],
        copy=False,
    )
    pixel, dvae, other_pixel, other_dvae = tasks

    def entry(
        task: pending.PendingCell, job_id: str, needs: tuple[str, ...] = (), protocols=("knn",)
    ) -> Job:
        config = task.cell.config
        more = {
            "key": config.hash,
            "needs": needs,
            "records": tuple(record_hash(config, protocol) for protocol in protocols),
        }
        return submitted(tmp_path, job_id).model_copy(update=more)

    fit = {"kind": "fit", "key": sweep_key(dvae.cell.config)}
    entries = [
        submitted(tmp_path, "1").model_copy(update=fit),
        entry(dvae, "2", needs=("1",)),
        entry(pixel, "3"),
        entry(other_pixel, "4", protocols=()),  # its pre-training alone
        entry(other_pixel, "5", needs=("4",)),
    ]
    jobs = BenchmarkJobs(entries, tasks)
    found = {task.cell.label + str(task.cell.config.seed): jobs.cell_state(task) for task in tasks}
    shown = {label: (one.name, one.job and one.job.job_id) for label, one in found.items()}
    assert shown == {
        "pixel0": ("missing", "3"), "dvae0": ("failed", "1"), "pixel1": ("running", "4"),
        "dvae1": ("missing", None),
    }  # fmt: skip
    # what is tried again counts, whatever went before
    again = BenchmarkJobs([*entries, entry(dvae, "6"), entry(other_dvae, "5")], tasks)
    assert [again.cell_state(task).name for task in (dvae, other_dvae)] == ["missing", "queued"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("7|RUNNING|{uid}|2026-02-03T04:05:06|None|mim_bench-b", "running"),
        ("7|RUNNING|{uid}|2026-02-03T04:05:06|None|my_other_work", "vanished"),
        ("7|RUNNING|{uid}1|2026-02-03T04:05:06|None|mim_bench-b", "vanished"),
        ("7|RUNNING|{uid}|2025-02-03T04:05:06|None|mim_bench-b", "vanished"),
        ("7|RUNNING|None", "vanished"),
    ],
)
def test_id_that_came_round_again__is_nobody_of_ours(answers, tmp_path, line, found):
    answers("", "")
    for command in ("squeue", "sacct"):
        (tmp_path / "bin" / f"{command}.txt").write_text(line.format(uid=os.getuid()) + "\n")
    entry = submitted(tmp_path, "7")
    assert states(entry) == {"7": found}
    Ledger(tmp_path).folder.mkdir()
    Ledger(tmp_path).append([entry])
    assert [job.job_id for job in cancel("b", out=tmp_path)] == ["7"] * (found == "running")


def test_ledger__of_an_id_that_came_again_the_newest_counts_and_another_cluster_is_named(
    answers, tmp_path
):
    answers("", "")
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text("#!/bin/sh\necho 'ClusterName = b'\n")
    scontrol.chmod(0o755)
    ledger = Ledger(tmp_path)
    ledger.folder.mkdir()
    ledger.append([job(0, job_id="7"), job(1, job_id="7", folder=str(tmp_path), cluster="b")])
    assert [one.seed for one in ledger.jobs()] == [1]
    ledger.append([job(2, job_id="8", folder=str(tmp_path), cluster="a")])
    with pytest.raises(UserError, match="job 8 was submitted on the cluster a, this is b"):
        ledger.jobs()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partition = 'x\\n#SBATCH --wrap=rm'".replace("'", '"'), "holds a control character"),
        ("[sbatch]\nexclude = 'n1\\nx'".replace("'", '"'), "holds a control character"),
        ("timeout_hours = inf", "finite"),
        ("[sbatch]\np = 'gpu'", "sbatch.p: short options are not read; use partition"),
        ("[sbatch]\ngres = 'gpu:8'", "8 GPUs for 1 process"),
        ("[sbatch]\ngres = 'gpu:a100:2'", "use gpus_per_node=2"),
    ],
)
def test_setting__that_would_go_wrong_on_the_cluster_is_refused(tmp_path, text, said):
    (tmp_path / "cluster.toml").write_text(text)
    with pytest.raises(UserError, match=said):
        load_cluster(tmp_path / "cluster.toml", [])


def test_setting__that_sbatch_knows_is_read_with_or_without_its_dashes(tmp_path):
    (tmp_path / "cluster.toml").write_text(
        "tasks_per_node = 2\n[sbatch]\n'--exclude' = 'n1'\ngres = 'gpu:a100:2,tmp:5'"
    )
    assert load_cluster(tmp_path / "cluster.toml", [])[0].sbatch["exclude"] == "n1"


@pytest.mark.parametrize("place", ["a%j", "a\nb"])
def test_out__that_slurm_would_read_otherwise_is_refused(sweep_request, place):
    with pytest.raises(UserError, match="replaces what follows %|control character"):
        make_plan(replace(sweep_request, out=sweep_request.out / place), Cluster(), copy=False)


def test_log__is_that_of_the_process_that_failed_first(tmp_path):
    entry = submitted(tmp_path, "1", 3, _1=ERROR, _2=("error", "Connection closed by peer"))
    os.utime(tmp_path / "1_1_result.pkl", (1, 1))
    path, lines = state.log(entry)
    assert path == tmp_path / "1_1_log.err"
    assert lines == ["Traceback", "  first", "ValueError: no"]


def test_queue__what_slurm_has_forgotten_is_not_in_it(answers, tmp_path, monkeypatch):
    answers("", None)
    (tmp_path / "bin" / "squeue").write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n"
    )
    assert slurm.queue([submitted(tmp_path, "1")]) == {}
    (tmp_path / "bin" / "squeue").write_text(
        "#!/bin/sh\necho 'squeue: error: no answer' >&2\nexit 1\n"
    )
    with pytest.raises(UserError, match=r"^squeue: no answer$"):
        slurm.queue([submitted(tmp_path, "1")])


def test_progress_file__has_stage_speed_and_time_left_once_a_second(tmp_path, monkeypatch):
    clock = iter([100.0, 100.0, 100.5, 101.0, 102.0, 102.0, *([103.0] * 9)])
    monkeypatch.setattr("time.time", lambda: next(clock))
    path = progress_path(tmp_path, "7_1")
    with ProgressFile(path).stage("pre-train hog") as report:
        assert json.loads(path.read_text()) == {"stage": "pre-train hog", "time": 100.0}
        report(10, 100, 50.0, 1.0)  # at 100.5
        assert "done_steps" not in json.loads(path.read_text())
        report(15, 100, 50.0, 0.9)  # at 101
        report(30, 100, 50.0, 0.8)  # at 102
    report = json.loads(path.read_text())
    assert (report["done_steps"], report["num_steps"], report["images_per_s"]) == (30, 100, 50.0)
    assert report["seconds_left"] == pytest.approx(1.5 / 20 * 70, abs=0.1)
