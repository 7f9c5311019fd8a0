"""What a sweep has still to do."""

import json

from fake import fake_results

from mim_bench.records.pending import list_pending


def test_pending_cell__tells_a_record_of_an_older_protocol_from_none(tmp_path):
    fake_results("targets", "tiny", tmp_path)
    records = tmp_path / "targets/tiny/records"
    older, gone = (
        next(records.glob(f"hog-tiny-s0-*__{protocol}.json")) for protocol in ("knn", "linear")
    )
    older.write_text(
        json.dumps(json.loads(older.read_text()) | {"protocol_version": 0, "sha256": None})
    )
    gone.unlink()
    pending = list_pending("targets", "tiny", results=tmp_path, copy=False)
    (cell,) = (one for one in pending if one.missing)
    assert cell.missing == ("linear", "knn") and cell.stale == ("knn",)
