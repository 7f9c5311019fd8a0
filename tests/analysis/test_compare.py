"""`compare` and `validate`: paired difference of two runs, and every fault named with its file."""

import json

import pytest
from fake import fake_results

from mim_bench.analysis import compare, validate
from mim_bench.errors import UserError
from mim_bench.records import store


@pytest.fixture
def results(tmp_path):
    fake_results("targets", "tiny", tmp_path / "results")
    return tmp_path / "results"


def runs(results):
    found = store.benchmark_records("targets", "tiny", results)
    return {one.record.target: one.record.run_id for one in found if one.record.seed == 0}


def test_compare__pairs_the_images_of_two_runs(results, tmp_path):
    name = runs(results)
    a, b = (compare.records_of(name[t], out=tmp_path, results=results) for t in ("dvae", "pixel"))
    shared, fields = compare.compare(a, b)
    linear = next(one for one in shared if one.measure == "linear")
    assert linear.difference.mean == pytest.approx(linear.a - linear.b)
    assert all(field.startswith("target.") for field in fields) and "target.name" in fields
    speed = next(one for one in shared if one.measure == "step_s")
    assert speed.difference is None


def test_run_against_itself__differs_in_nothing(results, tmp_path):
    run = compare.records_of(runs(results)["hog"], out=tmp_path, results=results)
    shared, fields = compare.compare(run, run)
    assert fields == {} and all(o.difference is None or o.difference.mean == 0 for o in shared)


def test_unknown_run__names_the_nearest(results, tmp_path):
    name = runs(results)["hog"]
    with pytest.raises(UserError, match=f"nearest: {name}"):
        compare.records_of(name[:-1], out=tmp_path, results=results)


def test_runs_on_other_images__are_not_compared(results, tmp_path):
    a = compare.records_of(runs(results)["hog"], out=tmp_path, results=results)
    b = compare.records_of(runs(results)["dvae"], out=tmp_path, results=results)
    path, record = next(iter(b.items()))
    b[path] = record.model_copy(
        update={"data": record.data.model_copy(update={"fingerprint": "0" * 64})}
    )
    with pytest.raises(UserError, match="different images"):
        compare.compare(a, b)


def test_validate__passes_on_what_is_right(results):
    checked, faults = validate.validate(results)
    assert faults == []
    assert (
        any("folders of records" in line for line in checked) and "1 folders of records" in checked
    )


def test_validate__names_every_fault(results):
    records = sorted((results / "targets/tiny/records").glob("*__linear.json"))
    content = json.loads(records[0].read_text())
    content["config"]["mask"]["ratio"] = 0.25
    records[0].write_text(json.dumps(content | {"sha256": None}))
    (results / "nonsense/tiny/records").mkdir(parents=True)
    _, faults = validate.validate(results)
    assert len(faults) == 2
    assert "changed by hand" in faults[1] and records[0].name in faults[1]
    assert "nonsense" in faults[0]
