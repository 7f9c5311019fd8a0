"""What a table says of the commits behind its rows."""

import json

import pytest

from mim_bench.analysis import notes, table
from mim_bench.errors import UserError
from mim_bench.records import replay, store
from mim_bench.records.record import read, write
from tests.fake import fake_results


@pytest.fixture
def folder(tmp_path):
    """A folder of made-up records of `targets` at tiny, without a replay."""
    fake_results("targets", "tiny", tmp_path)
    return tmp_path / "targets" / "tiny"


def _write(folder, *, skip=0, unequal=0):
    wanted = sorted(replay.trained_by(r for _, r in store.read_folder(folder / "records")))
    rows = [
        {"target": target, "commit": commit, "precision": precision, "weights_sha256": "0", "equal": place >= unequal}
        for place, (target, commit, precision) in enumerate(wanted)
    ]  # fmt: skip
    content = {"commit": "f" * 40, "made": "2026-11-28", "settings": [], "rows": rows[skip:]}
    (folder / replay.FILE).write_text(json.dumps(content))
    return wanted


def _said(folder):
    made = table.build("targets", "tiny", folder.parents[1])
    return next(note for note in notes.notes(made) if note.startswith("Commit"))


def test_note__says_whether_all_commits_train_alike(folder):
    assert "(" not in _said(folder).partition(";")[0]
    wanted = _write(folder)
    assert f"(all train the weights of {'f' * 12}, bit for bit over a few steps)" in _said(folder)
    _write(folder, unequal=1)
    target, commit, _ = wanted[0]
    assert f"(NOT the weights of {'f' * 12} after a few steps: {target} at {commit[:12]})" in _said(
        folder
    )
    _write(folder, skip=1)
    assert f"(1 of {len(wanted)} not replayed since)" in _said(folder)


def test_several_commits_without_a_replay__are_said_to_be_untried(folder):
    path = next((folder / "records").glob("*__linear.json"))
    record = read(path)
    code = record.code.model_copy(update={"commit": "e" * 40})
    facts = record.pretrain and record.pretrain.model_copy(update={"code": code})
    write(path, record.model_copy(update={"pretrain": facts, "sha256": None}), {})
    assert "(not replayed: whether they train alike was not tried)" in _said(folder)


def test_damaged_file__is_one_line(folder):
    (folder / replay.FILE).write_text('{"rows": 3}')
    with pytest.raises(UserError, match=r"replay\.json is damaged"):
        _said(folder)
