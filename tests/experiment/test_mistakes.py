"""What a user's mistake leaves behind, and what is refused before any training."""

import pytest

from mim_bench.analysis.write import put_between
from mim_bench.cluster.status import status
from mim_bench.errors import UserError
from mim_bench.experiment.run import execute
from mim_bench.records import pending
from tests.fake import fake_results


def test_mistake_before_the_first_step__leaves_no_run_folder(small, tmp_path):
    (tmp_path / "teacher").mkdir()
    config = small("feature", f"target.teacher={tmp_path / 'teacher'}")
    with pytest.raises(UserError, match="teacher"):
        execute(config, out=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*/config.json"))


def test_out_below_a_file__is_refused_by_name(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, not a folder"):
        execute(small("pixel"), out=tmp_path / "file" / "runs")


@pytest.mark.parametrize("copy", [False, True])
def test_sweep_of_other_images__is_refused_before_anything_is_run_or_written(tmp_path, copy):
    fake_results("targets", "tiny", tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(
        UserError, match=r"holds records of data.source=embedded, not of cifar10: give --data"
    ):
        pending.list_pending(
            "targets", "tiny", results=tmp_path, overrides=["data.source=cifar10"], copy=copy
        )
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_status__says_what_a_half_done_cell_lacks(tmp_path):
    fake_results("targets", "tiny", tmp_path / "results", seeds=(0,))
    for path in (tmp_path / "results/targets/tiny/records").glob("hog-*__knn.json"):
        path.unlink()
    rows = status("targets", "tiny", out=tmp_path / "runs", results=tmp_path / "results").cells
    details = {(row.label, row.seed): row.detail for row in rows}
    assert details["hog", 0] == "lacks knn" and details["hog", 1] == details["pixel", 0] == ""


def test_marks__that_are_not_there_name_those_that_are(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- speed -->\n<!-- end -->\n")
    with pytest.raises(UserError, match="nearest: <!-- speed -->"):
        put_between(page, "<!-- sped -->", "")
