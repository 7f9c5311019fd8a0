"""That the cluster of conftest.py does what the other tests here rely on, through submitit."""

import os
import time
from pathlib import Path

import pytest
import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, UncompletedJobError

# Jobs. They are pickled by reference: a job imports this module.


def add(a: int, b: int) -> int:
    return a + b


def fail() -> None:
    raise ValueError("on purpose")


def sleep(seconds: float) -> tuple[float, float]:
    start = time.time()
    time.sleep(seconds)
    return start, time.time()


def devices(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def rank_and_node() -> tuple[int, str, list[str]]:
    task = submitit.JobEnvironment()
    return task.global_rank, os.environ["SLURMD_NODENAME"], list(task.hostnames)


class UntilRestarted:
    """Sleeps until it is ended, and returns once it is started again."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign
        self.starts: list[float] = []
        self.signals: list[float] = []

    def __call__(self) -> tuple[int, list[float], list[float]]:
        self.starts.append(time.time())
        self.sign.touch()  # from here on a signal finds its handler
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if restarts == 0:
            time.sleep(600)
        return restarts, self.starts, self.signals

    def checkpoint(self) -> DelayedSubmission:
        self.signals.append(time.time())
        return DelayedSubmission(self)


# Slurm looks at time limits every 30 s, so that test takes half a minute: its job starts first, the
# other tests run meanwhile, and the last one waits for it. It keeps to node 1, others may need node 2.


@pytest.fixture(scope="module", autouse=True)
def overdue(slurm, tmp_path_factory) -> submitit.Job:
    folder = tmp_path_factory.mktemp("overdue")
    executor = slurm.executor(
        folder,
        timeout_min=1,
        slurm_signal_delay_s=30,
        slurm_additional_parameters={"nodelist": slurm.nodes[0]},
    )
    return executor.submit(UntilRestarted(folder / "sign"))


def test_function__returns_its_value(slurm, tmp_path):
    job = slurm.executor(tmp_path).submit(add, 2, b=3)
    assert slurm.result(job) == 5
    slurm.wait_for(lambda: slurm.states(job.job_id) == {job.job_id: "COMPLETED"})


def test_failing_function__is_failed_and_says_why(slurm, tmp_path):
    job = slurm.executor(tmp_path).submit(fail)
    with pytest.raises(FailedJobError, match="ValueError: on purpose"):
        slurm.result(job)
    slurm.wait_for(lambda: slurm.states(job.job_id) == {job.job_id: "FAILED"})
    slurm.wait_for(lambda: job.get_info(mode="force").get("State") == "FAILED")


def test_cancelled_job__is_done_without_a_result(slurm, tmp_path):
    job = slurm.executor(tmp_path).submit(sleep, 600)
    slurm.wait_for(lambda: slurm.states(job.job_id) == {job.job_id: "RUNNING"})
    job.cancel(check=True)
    with pytest.raises(UncompletedJobError, match="CANCELLED"):
        slurm.result(job)


def test_array__runs_no_more_at_once_than_its_limit(slurm, tmp_path):
    executor = slurm.executor(tmp_path, slurm_array_parallelism=2)
    jobs = executor.map_array(sleep, [2] * slurm.max_array_size)
    array_id = jobs[0].job_id.split("_")[0]
    assert [job.job_id for job in jobs] == [f"{array_id}_{i}" for i in range(len(jobs))]
    times = [slurm.result(job) for job in jobs]
    at_once = [sum(start <= moment < end for start, end in times) for moment, _ in times]
    assert max(at_once) == 2
    slurm.wait_for(
        lambda: slurm.states(array_id) == {job.job_id: "COMPLETED" for job in jobs}, timeout_s=10
    )


def test_array__is_refused_beyond_the_largest_size(slurm, tmp_path):
    assert f"MaxArraySize            = {slurm.max_array_size}\n" in slurm.scontrol("show", "config")
    with pytest.raises(FailedJobError, match="Invalid job array specification"):
        slurm.executor(tmp_path).map_array(sleep, [0] * (slurm.max_array_size + 1))


def test_dependency__waits_for_success_and_is_cancelled_after_failure(slurm, tmp_path):
    def after(job: submitit.Job) -> submitit.Job:
        extra = {"dependency": f"afterok:{job.job_id}", "kill-on-invalid-dep": "yes"}
        return slurm.executor(tmp_path, slurm_additional_parameters=extra).submit(sleep, 0)

    good = slurm.executor(tmp_path).submit(sleep, 1)
    bad = slurm.executor(tmp_path).submit(fail)
    after_good, after_bad = after(good), after(bad)
    assert slurm.result(good)[1] <= slurm.result(after_good)[0]
    slurm.wait_for(lambda: slurm.states(after_bad.job_id) == {after_bad.job_id: "CANCELLED"})


def test_gpus__are_handed_out_once(slurm, tmp_path):
    executor = slurm.executor(
        tmp_path, gpus_per_node=1, slurm_additional_parameters={"nodelist": slurm.nodes[1]}
    )
    jobs = [executor.submit(devices, 2) for _ in range(slurm.gpus_per_node)]
    assert sorted(slurm.result(job) for job in jobs) == ["0", "1"]


def test_gpus__are_refused_beyond_what_there_is(slurm, tmp_path):
    executor = slurm.executor(tmp_path, gpus_per_node=slurm.gpus_per_node + 1)
    with pytest.raises(FailedJobError, match="Requested node configuration is not available"):
        executor.submit(devices, 0)


def test_two_nodes__run_one_task_each(slurm, tmp_path):
    job = slurm.executor(tmp_path, nodes=2, tasks_per_node=1).submit(rank_and_node)
    hosts = list(slurm.nodes)
    assert slurm.results(job) == [(0, hosts[0], hosts), (1, hosts[1], hosts)]


def test_preemption__delivers_usr2_and_the_job_runs_again(slurm, tmp_path):
    whole_node = {
        "cpus_per_task": slurm.cpus_per_node,
        "slurm_additional_parameters": {"nodelist": slurm.nodes[1]},
    }
    low = slurm.executor(tmp_path, **whole_node).submit(UntilRestarted(tmp_path / "sign"))
    slurm.wait_for((tmp_path / "sign").exists)
    high = slurm.executor(tmp_path, slurm_partition="high", **whole_node).submit(sleep, 1)
    start, end = slurm.result(high)
    restarts, starts, signals = slurm.result(low)
    assert (restarts, len(starts), len(signals)) == (1, 2, 1)
    assert starts[0] < signals[0] < start < end < starts[1]
    assert "Caught signal SIGUSR2" in low.stderr() and "this job is preempted" in low.stderr()


def test_requeue__kills_without_usr2_and_the_job_runs_again(slurm, tmp_path):
    job = slurm.executor(tmp_path).submit(UntilRestarted(tmp_path / "sign"))
    slurm.wait_for((tmp_path / "sign").exists)
    slurm.scontrol("requeue", job.job_id)
    restarts, starts, signals = slurm.result(job)
    assert (restarts, len(starts), len(signals)) == (1, 1, 0)


def test_time_limit__delivers_usr2_before_it_and_the_job_runs_again(slurm, overdue):
    restarts, starts, signals = slurm.result(overdue, timeout_s=90)
    assert (restarts, len(starts), len(signals)) == (1, 2, 1)
    assert signals[0] - starts[0] < 60
    assert "Caught signal SIGUSR2" in overdue.stderr()
    assert "this job is timed-out" in overdue.stderr()
