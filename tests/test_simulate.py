"""`simulate`: schedules checked by hand, and bounds that hold for every list of jobs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim_bench.error import UserError
from mim_bench.simulate import Job, simulate

CHAIN = [Job("fit", 1), Job("train", 3, ("fit",)), Job("test", 2, ("train",))]


def test_chain__takes_its_sum_on_any_number_of_gpus():
    for gpus in (1, 8):
        found = simulate(CHAIN, gpus)
        assert found.start_hours == {"fit": 0, "train": 1, "test": 4}
        assert found.makespan_hours == found.chain_hours == found.gpu_hours == 6
        assert found.chain == tuple(CHAIN)


def test_independent_jobs__fill_the_gpus_in_the_order_of_the_list():
    found = simulate([Job("a", 3), Job("b", 2), Job("c", 2), Job("d", 1)], gpus=2)
    assert found.start_hours == {"a": 0, "b": 0, "c": 2, "d": 3}
    assert (found.makespan_hours, found.gpu_hours) == (4, 8)
    assert [job.name for job in found.chain] == ["a"]


def test_job_that_waits__lets_a_later_one_go_first():
    found = simulate([*CHAIN, Job("other", 4)], gpus=2)
    assert found.start_hours == {"fit": 0, "train": 1, "test": 4, "other": 0}


def test_queue_limit__counts_waiting_jobs():
    jobs = [*CHAIN, Job("other", 4)]
    # fit, train, test hold the three places; other gets one when fit is done
    assert simulate(jobs, gpus=2, queue_limit=3).start_hours["other"] == 1
    assert simulate(jobs, gpus=2, queue_limit=2).start_hours["other"] == 4
    assert simulate(jobs, gpus=2, queue_limit=1).makespan_hours == 10
    assert simulate(jobs, gpus=2, queue_limit=4) == simulate(jobs, gpus=2)


def test_jobs_that_end_together__free_their_gpus_together():
    jobs = [Job("a", 2), Job("b", 2), Job("c", 1, ("a", "b")), Job("d", 1)]
    assert simulate(jobs, gpus=2).start_hours == {"a": 0, "b": 0, "c": 2, "d": 2}
    assert simulate([], gpus=1).makespan_hours == 0


@st.composite
def lists(draw):
    jobs: list[Job] = []
    for number in range(draw(st.integers(1, 12))):
        before = st.sampled_from([job.name for job in jobs]) if jobs else st.nothing()
        needs = draw(st.lists(before, max_size=2, unique=True)) if jobs else []
        jobs.append(Job(f"{number}", draw(st.integers(0, 9)), tuple(needs)))
    return jobs


@settings(max_examples=60, deadline=None)
@given(jobs=lists(), gpus=st.integers(1, 4), limit=st.none() | st.integers(1, 6))
def test_schedule__keeps_its_promises(jobs, gpus, limit):
    found = simulate(jobs, gpus, limit)
    start = found.start_hours
    end = {job.name: start[job.name] + job.hours for job in jobs}
    assert found.makespan_hours == max(end.values())
    assert all(start[job.name] >= end[name] for job in jobs for name in job.needs)
    total = sum(job.hours for job in jobs)
    assert found.makespan_hours >= max(found.chain_hours, total / gpus)
    assert found.makespan_hours <= total
    if limit is None:  # Graham 1966
        assert found.makespan_hours <= total / gpus + (1 - 1 / gpus) * found.chain_hours + 1e-9
    for moment in start.values():
        together = [job for job in jobs if start[job.name] <= moment < end[job.name]]
        assert len(together) <= min(gpus, limit or gpus)
    if limit is not None:  # a job starts only when few enough before it are not done
        for place, job in enumerate(jobs):
            unfinished = [j for j in jobs[:place] if end[j.name] > start[job.name]]
            assert len(unfinished) < limit


def test_no_gpu__is_refused():
    with pytest.raises(UserError, match="gpus=0: allowed: whole numbers from 1"):
        simulate(CHAIN, gpus=0)
    with pytest.raises(UserError, match="queue_limit=0"):
        simulate(CHAIN, gpus=1, queue_limit=0)
    with pytest.raises(ValueError, match="job train"):
        simulate(CHAIN[1:], gpus=1)
