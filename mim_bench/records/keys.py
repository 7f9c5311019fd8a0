"""Keys that a record and its cell have in common, to find one by the other.

A config leaves some fields to the data and holds their path; neither determines the images, so they
are in no key. A record of an older version of a target still finds its row by the fields that vary.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mim_bench.config.cells import Cell
from mim_bench.config.resolve import flatten, validated
from mim_bench.config.run import RunConfig, digest
from mim_bench.config.trainings import fit_batches
from mim_bench.records.record import Record

_FROM_DATA = ("data.image_size", "data.in_chans", "data.mean", "data.std")
"""Fields that a config may leave to the data; the data's fingerprint stands for it."""


_WHERE = ("data.source", "data.skip_bad_images")
"""Fields on where the images lie, which do not determine the images."""


@dataclass(frozen=True)
class Keys:
    """Cells by what a record of theirs has in common with them."""

    exact: dict[tuple[str, int], Cell]
    loose: dict[frozenset[str], dict[tuple[str, int], Cell]]
    fitted: dict[int, RunConfig]
    """Config of each cell with its batches bounded."""

    @classmethod
    def of(cls, grid_cells: Sequence[Cell], num_images: int) -> "Keys":
        """Keys of cells whose batches are bounded by a number of training images."""
        keys = cls({}, {}, {})
        for cell in grid_cells:
            config = keys.fitted[id(cell)] = fit_batches(cell.config, num_images)
            kept = frozenset(cell.varies() | {"target.name"})
            keys.exact[_key(config, None)] = cell
            keys.loose.setdefault(kept, {})[_key(config, kept)] = cell
        return keys

    def cell_of(self, record: Record) -> tuple[Cell | None, tuple[str, ...]]:
        """The cell of a record, if it has one, and what of the record is older than the cell."""
        text = shared_text(record)
        cell = self.exact.get((_text_key(text, None), record.seed))
        if cell is not None:
            return cell, ()
        candidates = (
            of_key.get((_text_key(text, kept), record.seed)) for kept, of_key in self.loose.items()
        )
        return next((match for match in candidates if match is not None), None), ("target",)


_TEXTS: dict[str | None, str] = {}
"""A record's sha256 -> its config without the seed."""


def config_of(record: Record) -> RunConfig:
    """A record's config; of records that differ in their seed alone it is read once."""
    shared = _config(shared_text(record))
    return shared.model_copy(update={"seed": record.seed})


def shared_text(record: Record) -> str:
    """A record's config but for its seed, as a key; one string for all records that share it."""
    text = _TEXTS.get(record.sha256)
    if text is None:
        text = sys.intern(json.dumps(record.config | {"seed": 0}, sort_keys=True))
        if record.sha256:  # it has one as soon as it was in a file
            _TEXTS[record.sha256] = text
    return text


@lru_cache(maxsize=4096)
def _config(text: str) -> RunConfig:
    return validated(json.loads(text))


def _key(config: RunConfig, kept: frozenset[str] | None) -> tuple[str, int]:
    """Key of everything that a record and its cell have in common; with `kept` these fields of the target block only,
    so that a record of an older version of a target still finds its row."""
    shared = config.model_copy(update={"seed": 0})
    return _shared_key(json.dumps(shared.identity()), kept), config.seed


@lru_cache(maxsize=16_384)
def _text_key(text: str, kept: frozenset[str] | None) -> str:
    """The first part of `_key` from a record's `shared_text`."""
    return _shared_key(json.dumps(_config(text).identity()), kept)


@lru_cache(maxsize=16_384)
def _shared_key(text: str, kept: frozenset[str] | None) -> str:
    identity = flatten(json.loads(text))
    for field in (*_FROM_DATA, *_WHERE):
        identity.pop(field, None)
    if kept is not None:
        identity = {k: v for k, v in identity.items() if not k.startswith("target.") or k in kept}
    return digest(identity)
