"""Outcome of `tools/replay.py`: whether the commits behind a folder of records train alike, bit for bit."""

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from mim_bench.errors import UserError
from mim_bench.files import read_json
from mim_bench.records.record import Record
from mim_bench.schema import Frozen

FILE = "replay.json"


class Replay(Frozen):
    """The beginning of one target's run, at one commit and at the one that all are compared with."""

    target: str
    commit: str
    precision: str
    weights_sha256: str
    equal: bool
    """True if the weights equal those of the other commit."""


class Replays(Frozen):
    """The content of the file."""

    commit: str
    """The one that the others are compared with: HEAD when the file was begun."""
    made: str
    settings: tuple[str, ...]
    """Settings that shorten the runs."""
    rows: tuple[Replay, ...]


def trained_by(records: Iterable[Record]) -> set[tuple[str, str, str]]:
    """(target, commit, precision) of every pre-training behind records."""
    return {
        (record.target, (record.pretrain.code or record.code).commit, record.precision)
        for record in records
        if record.pretrain
    }


def note(folder: Path, records: Iterable[Record]) -> str:
    """Remark on the commits of a folder's records, from its replay; empty where there is one commit."""
    path, trainings = folder / FILE, trained_by(records)
    if not path.is_file():
        is_one = len({commit for _, commit, _ in trainings}) < 2
        return "" if is_one else " (not replayed: whether they train alike was not tried)"
    try:
        replays = Replays.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {error.errors()[0]['msg']}") from None
    equal_of = {(row.target, row.commit, row.precision): row.equal for row in replays.rows}
    if missing := len(trainings - equal_of.keys()):
        return f" ({missing} of {len(trainings)} not replayed since)"
    if unequal := sorted({f"{t} at {c[:12]}" for t, c, p in trainings if not equal_of[t, c, p]}):
        return (
            f" (NOT the weights of {replays.commit[:12]} after a few steps: {', '.join(unequal)})"
        )
    return f" (all train the weights of {replays.commit[:12]}, bit for bit over a few steps)"
