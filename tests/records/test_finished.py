"""Runs below an output folder."""

from fake import fake_results

from mim_bench.records import store
from mim_bench.records.finished import keep_pictures


def test_pictures__of_the_runs_at_hand_are_kept_one_a_target(tmp_path):
    fake_results("targets", "tiny", tmp_path / "results")
    entries = store.benchmark_records("targets", "tiny", tmp_path / "results")
    runs = sorted({(one.record.target, one.record.run_id) for one in entries})
    for target, run_id in runs:
        if target in ("hog", "dvae"):  # both of their seeds; of the other targets none
            (tmp_path / "runs" / run_id).mkdir(parents=True)
            (tmp_path / "runs" / run_id / "picture.png").write_bytes(run_id.encode())
    kept = keep_pictures(entries, tmp_path / "runs", tmp_path)
    assert sorted(path.name for path in kept) == ["dvae.png", "hog.png"]
    assert kept == sorted((tmp_path / "pictures").iterdir(), key=kept.index)
    first = next(run_id for target, run_id in runs if target == "hog" and "-s0-" in run_id)
    assert (tmp_path / "pictures" / "hog.png").read_bytes() == first.encode()
