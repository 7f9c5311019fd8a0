"""Runs that are preempted, out of time, signalled, killed, or on two nodes end as if nothing had happened.

All jobs are submitted first and run side by side; a test then waits for its own. Jobs pause in every step, so
that they are under way for long enough; the reference runs here do not.
"""

import shutil
import time

import pytest
import submitit
import torch
from conftest import SMALL
from safetensors.torch import load_file
from submitit.core.utils import FailedJobError
from submitit.helpers import TorchDistributedEnvironment

from mim_bench.cluster.job import Job
from mim_bench.config.resolve import load_config
from mim_bench.experiment.run import execute
from mim_bench.train.log import read_log

STEPS_PER_EPOCH = 4
SETTINGS = (
    *SMALL,
    "pretrain.batch_size=30",
    "runtime.log_every_steps=3",  # does not divide an epoch: a line of the log spans a stop
    "runtime.timeout_minutes=1",
    "evaluate.protocols=knn",
    "evaluate.batch_size=60",
)
RECIPE = 'class = "slurm.slow:SlowTarget"\ndescription = "d"\npaper = "p"\n[params]\n'


def occupy(seconds: float) -> None:
    time.sleep(seconds)


def starts(job: submitit.Job) -> int:
    """How often the job began to run."""
    return (job.stdout() or "").count("Loading pickle")


class Runs:
    """Submits runs, and knows how each ends when it is left alone."""

    def __init__(self, slurm, home) -> None:
        self.slurm, self.home = slurm, home

    def config(self, num_epochs, **params):
        recipe = self.home / f"slow-{'-'.join(map(str, params.values()))}.toml"
        recipe.write_text(RECIPE + "".join(f"{name} = {value}\n" for name, value in params.items()))
        return load_config(str(recipe), "tiny", [*SETTINGS, f"pretrain.epochs={num_epochs}"])

    def submit(self, name, config, *, nodes=1, cpus=1, **slurm_options):
        extra = slurm_options.pop("extra", {})
        executor = submitit.AutoExecutor(
            self.home / name, cluster="slurm", slurm_max_num_timeout=100
        )
        executor.update_parameters(
            **{"timeout_min": 60, **slurm_options},
            nodes=nodes,
            tasks_per_node=1,
            cpus_per_task=cpus,
            slurm_srun_args=["--kill-on-bad-exit=1"],
            slurm_additional_parameters=extra,
        )
        job = Job(
            kind="run", benchmark="b", preset="tiny", overrides=(), label=name, seed=0, key="k",
            folder="f", tasks=nodes, snapshot="s", submitted="t",
            configs=(config.model_dump(mode="json"),),
            out=str(self.home / name / "runs"),
            records_folder=str(self.home / name / "records"),
            command="test",
        )  # fmt: skip
        return executor.submit(job)

    def folder(self, name):
        found = [path.parent for path in (self.home / name / "runs").glob("*/config.json")]
        return found[0] if found else None

    def steps(self, name):
        """Steps of the checkpoints that lie there, newest last."""
        paths = (self.home / name / "runs").glob("*/pretrain/step-*.safetensors")
        return sorted(int(path.stem.removeprefix("step-")) for path in paths)

    def under_way(self, name):
        """Waits for a run's second epoch."""
        self.slurm.wait_for(lambda: self.steps(name), timeout_s=120)

    def is_as_left_alone(self, name, config):
        alone = execute(config, out=self.home / f"{name}-alone", command="test").folder
        mine, theirs = (load_file(f / "model.safetensors") for f in (self.folder(name), alone))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        curves = [read_log(f / "pretrain.jsonl") for f in (self.folder(name), alone)]
        ours, expected = ([(x["step"], x["loss"]) for x in curve] for curve in curves)
        assert ours == expected
        assert len(list((self.home / name / "records").glob("*__knn.json"))) == 1
        return True

    def done(self, job, timeout_s=120):
        return self.slurm.result(job, timeout_s)


@pytest.fixture(scope="module")
def runs(slurm, tmp_path_factory):
    return Runs(slurm, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def jobs(slurm, runs):
    """All jobs, under way."""
    slow, fast = runs.config(100, pause_s=0.1), runs.config(10, pause_s=0.3)
    node = [{"nodelist": name} for name in slurm.nodes]
    short = {"timeout_min": 1, "slurm_signal_delay_s": 30}
    return {
        "overdue": (runs.submit("overdue", slow, extra=node[0], **short), slow),
        "signalled": (runs.submit("signalled", fast, extra=node[0]), fast),
        "two": (runs.submit("two", fast, nodes=2), fast),
        "dies": (runs.submit("dies", (c := runs.config(10, dies_on_rank=1)), nodes=2), c),
    }


def test_signalled_and_then_killed_run__ends_bit_equal(slurm, runs, jobs):
    job, config = jobs["signalled"]
    pickle = job.paths.submitted_pickle
    shutil.copyfile(pickle, pickle.with_suffix(".first"))
    runs.under_way("signalled")
    slurm.command("scancel", "--signal=USR2", job.job_id)
    slurm.wait_for(lambda: starts(job) == 2)
    saved = runs.steps("signalled")[-1]
    slurm.wait_for(lambda: runs.steps("signalled")[-1] > saved, timeout_s=120)
    # the failure of a node: nobody is told, and the pickle may be an old one
    shutil.copyfile(pickle.with_suffix(".first"), pickle)
    slurm.scontrol("requeue", job.job_id)
    runs.done(job)
    assert starts(job) == 3 and (job.stderr() or "").count("Caught signal") == 1
    assert runs.is_as_left_alone("signalled", config)


def test_two_nodes__agree_with_one_process(runs, jobs):
    job, config = jobs["two"]
    runs.done(job)
    alone = execute(config, out=runs.home / "two-alone", command="test").folder
    curves = [read_log(f / "pretrain.jsonl") for f in (runs.folder("two"), alone)]
    ours, expected = ([x["loss"] for x in curve] for curve in curves)
    assert len(ours) == len(expected) > 10
    assert ours == pytest.approx(expected, rel=2e-4)


def test_two_nodes__are_preempted_and_end_bit_equal(slurm, runs, jobs):
    config = jobs["two"][1]
    runs.done(jobs["two"][0])
    job = runs.submit("preempted", config, nodes=2, cpus=slurm.cpus_per_node - 1)
    runs.under_way("preempted")
    executor = slurm.executor(runs.home / "high", slurm_partition="high", nodes=2)
    executor.update_parameters(tasks_per_node=1, cpus_per_task=slurm.cpus_per_node - 1)
    high = executor.submit(occupy, 1)
    slurm.result(high, 90)
    step = runs.steps("preempted")[-1]
    runs.done(job)
    assert "this job is preempted" in job.stderr()
    whole, resumed = (load_file(runs.folder(n) / "model.safetensors") for n in ("two", "preempted"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert step > STEPS_PER_EPOCH


def test_rank_that_dies__ends_the_job_with_its_message(slurm, runs, jobs):
    job, _ = jobs["dies"]
    with pytest.raises(FailedJobError):
        runs.done(job)
    slurm.wait_for(lambda: set(slurm.states(job.job_id).values()) == {"FAILED"})
    assert "image 7 cannot be read" in job.task(1).stderr()


def test_run_out_of_time__is_requeued_and_ends_bit_equal(slurm, runs, jobs):
    job, config = jobs["overdue"]
    runs.done(job, timeout_s=240)
    assert "this job is timed-out" in job.stderr() and starts(job) >= 2
    assert runs.is_as_left_alone("overdue", config)


def test_processes__each_see_all_gpus_of_their_node(slurm, tmp_path):
    executor = slurm.executor(tmp_path, nodes=1, tasks_per_node=2, gpus_per_node=2)
    seen = slurm.results(executor.submit(device_of_rank), 90)
    assert seen == [("0,1", "0", "2"), ("0,1", "1", "2")]


def device_of_rank() -> tuple[str, str, str]:
    import os

    TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    assert submitit.JobEnvironment().num_tasks == 2
    return tuple(os.environ[n] for n in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "WORLD_SIZE"))
