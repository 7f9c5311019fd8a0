"""A digest of what a picture was drawn from, written into its PNG, so that an outdated one can be detected.

A stamp is a digest of records, or of runs where the picture shows predictions of their weights.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from mim_bench.config.run import digest
from mim_bench.records.record import Record

_KEY = "mim_bench records"
_FRAMES = "mim_bench frames"


def of_records(records: Iterable[Record]) -> str:
    """Stamp of the whole content of records, in any order: curves and times are drawn too, not metrics alone."""
    # only what the files say: a field that the schema gains makes no picture old
    content = (record.model_dump(mode="json", exclude_unset=True) for record in records)
    return digest(sorted(digest(item) for item in content))


def of_runs(hashes: Iterable[str]) -> str:
    """Stamp of the runs with these hashes, in any order."""
    return digest(sorted(set(hashes)))


def metadata(stamp: str) -> dict[str, str | None]:
    """Metadata of a PNG that matplotlib writes; without its version, so that a redraw gives the same bytes."""
    return {"Software": None, _KEY: stamp}


def read(path: Path) -> str | None:
    """The stamp of a PNG, if it has one."""
    with Image.open(path) as image:
        stamp = image.info.get(_KEY)
    return stamp if isinstance(stamp, str) else None


def frames(labels: Sequence[str]) -> dict[str, str | None]:
    """Metadata of a PNG whose frames, of one height, lie below one another."""
    return {_FRAMES: json.dumps(labels)}


def read_frames(path: Path) -> list[str]:
    """Labels of a PNG's frames, from above; empty if it is one picture."""
    with Image.open(path) as image:
        return json.loads(image.info.get(_FRAMES, "[]"))
