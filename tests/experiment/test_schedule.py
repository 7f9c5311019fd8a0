"""`simulate`: schedules checked by hand, by a second implementation, and by bounds that hold for every list."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim_bench.errors import UserError
from mim_bench.experiment.schedule import Job, simulate

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


def test_large_job__waits_for_its_gpus_and_lets_no_later_one_pass():
    jobs = [Job("a", 3, gpus=2), Job("b", 2, gpus=4), Job("c", 1, gpus=2)]
    found = simulate(jobs, gpus=4)
    assert found.start_hours == {"a": 0, "b": 3, "c": 5}  # backfill would start c at 0
    assert found.gpu_hours == 3 * 2 + 2 * 4 + 1 * 2
    assert found.makespan_hours == 6
    assert [job.name for job in found.chain] == ["a"] and found.chain_hours == 3


def test_large_job_that_waits_for_another__does_not_hold_up_the_rest():
    jobs = [Job("fit", 2), Job("train", 4, ("fit",), gpus=4), Job("other", 1, gpus=3)]
    assert simulate(jobs, gpus=4).start_hours == {"fit": 0, "train": 2, "other": 0}
    wide = [Job("fit", 2), Job("train", 4, ("fit",), gpus=3), Job("other", 3, gpus=2)]
    assert simulate(wide, gpus=4).start_hours == {"fit": 0, "train": 3, "other": 0}


def test_pairs_of_gpus__run_side_by_side():
    jobs = [Job(name, 2, gpus=2) for name in "abcd"]
    assert simulate(jobs, gpus=5).start_hours == {"a": 0, "b": 0, "c": 2, "d": 2}


@st.composite
def lists(draw, gpus):
    jobs: list[Job] = []
    for number in range(draw(st.integers(1, 12))):
        before = st.sampled_from([job.name for job in jobs]) if jobs else st.nothing()
        needs = draw(st.lists(before, max_size=2, unique=True)) if jobs else []
        hours, own = draw(st.integers(0, 9)), draw(st.integers(1, gpus))
        jobs.append(Job(f"{number}", hours, tuple(needs), own))
    return jobs


@st.composite
def clusters(draw, single=False):
    """Jobs, GPUs, queue limit; with `single` each job takes one GPU."""
    gpus = draw(st.integers(1, 4))
    return draw(lists(1 if single else gpus)), gpus, draw(st.none() | st.integers(1, 6))


def hour_by_hour(jobs, gpus, limit):
    """Start hours by looking at every whole hour anew, without a queue or a heap."""
    start: dict[str, int] = {}

    def is_done(job, hour):
        return job.name in start and start[job.name] + job.hours <= hour

    def next_job(hour):
        used = sum(j.gpus for j in jobs if j.name in start and not is_done(j, hour))
        done = {j.name for j in jobs if is_done(j, hour)}
        for place, job in enumerate(jobs):
            is_in_queue = limit is None or sum(j.name not in done for j in jobs[:place]) < limit
            if is_in_queue and job.name not in start and done.issuperset(job.needs):
                return job if used + job.gpus <= gpus else None
        return None

    hour = 0
    while len(start) < len(jobs):
        while job := next_job(hour):
            start[job.name] = hour
        hour += 1
    return start


@settings(max_examples=300, deadline=None)
@given(cluster=clusters())
def test_start_hours__are_those_of_a_second_implementation(cluster):
    jobs, gpus, limit = cluster
    jobs = [replace(job, hours=max(job.hours, 1)) for job in jobs]  # whole hours see no others
    found = simulate(jobs, gpus, limit)
    assert found.start_hours == hour_by_hour(jobs, gpus, limit)


@settings(max_examples=60, deadline=None)
@given(cluster=clusters())
def test_gpus_in_use__are_never_more_than_there_are(cluster):
    jobs, gpus, limit = cluster
    found = simulate(jobs, gpus, limit)
    assert found.gpu_hours == sum(job.gpus * job.hours for job in jobs)
    assert found.makespan_hours >= max(found.chain_hours, found.gpu_hours / gpus)
    for moment in found.start_hours.values():
        used = sum(
            j.gpus for j in jobs if 0 <= moment - found.start_hours[j.name] < j.hours
        )  # fmt: skip
        assert used <= gpus


@settings(max_examples=60, deadline=None)
@given(cluster=clusters(single=True))
def test_schedule__keeps_its_promises(cluster):
    jobs, gpus, limit = cluster
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


def test_too_few_gpus__are_refused():
    with pytest.raises(UserError, match="gpus=0: allowed: whole numbers from 1"):
        simulate(CHAIN, gpus=0)
    with pytest.raises(UserError, match="queue_limit=0"):
        simulate(CHAIN, gpus=1, queue_limit=0)
    with pytest.raises(UserError, match="job 'b' on 3 GPUs: allowed: 1 to 2"):
        simulate([Job("a", 1, gpus=2), Job("b", 1, gpus=3)], gpus=2)
    with pytest.raises(ValueError, match="job train"):
        simulate(CHAIN[1:], gpus=1)
