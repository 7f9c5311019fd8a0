"""Conditions that must hold before rows are put into one table; otherwise the table is refused and says why."""

from collections.abc import Iterable, Mapping, Sequence

from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.resolve import flatten
from mim_bench.config.run import IDENTITY
from mim_bench.errors import UserError
from mim_bench.records import keys
from mim_bench.records.record import Record
from mim_bench.records.store import CellRecord

_NOT_COMPARED = ("seed", "data.source", "data.skip_bad_images")
"""Seeds are the repeats; where the images lie is not which they are, as the fingerprint is."""


def check(entries: Sequence[CellRecord]) -> list[str]:
    """Refuses what proves nothing; returns the fields in which the rows' configs differ."""
    records = [entry.record for entry in entries]
    for record in records:
        if missing := _lacking(record):
            raise UserError(f"record {record.run_id} of {record.protocol} names no {missing[0]}")
    _check_same({record.device.kind for record in records}, "device kinds")
    _check_same({record.data.fingerprint for record in records}, "data sets")
    _check_same({record.precision for record in records}, "precisions")
    _check_same({_products(record) for record in records}, "kinds of matrix product")
    _same_images(entries)
    return differing_fields(entries)


def _lacking(record: Record) -> list[str]:
    """Fields that a record must name to stand in a table (rule 7 of the design), and this one does not."""
    facts = {
        "commit": record.code.commit not in ("", "none"),
        "versions": record.versions,
        "device": record.device.name,
        "data fingerprint": record.data.fingerprint,
        "class names": record.data.class_names or not any(m.name == "top1" for m in record.metrics),
        "wall time": record.seconds > 0,
    }
    if record.pretrain:
        facts |= {
            "number of images seen": record.pretrain.images_seen,
            "wall time of its pre-training": record.pretrain.seconds > 0,
            "hash of its first batches": record.pretrain.first_batches,
        }
    return [name for name, is_there in facts.items() if not is_there]


def _products(record: Record) -> str:
    return "TF32" if record.config.get("runtime", {}).get("tf32") else "exact"


def _check_same(values: set[str], noun: str) -> None:
    if len(values) > 1:
        raise UserError(f"records of several {noun} ({', '.join(sorted(values))}) never mix")


def _same_images(entries: Sequence[CellRecord]) -> None:
    """Targets of one seed must have seen the same crops under the same masks."""
    first_seen: dict[str, tuple[str, str]] = {}
    for entry in entries:
        facts, config = entry.record.pretrain, entry.record.config
        if facts is None:
            continue
        key = str([config[part] for part in ("seed", "augment", "mask")])
        first, run_id = first_seen.setdefault(key, (facts.first_batches, entry.record.run_id))
        if first != facts.first_batches:
            raise UserError(
                f"{entry.record.run_id} and {run_id} began on other images or masks: "
                "this compares more than what the grid names"
            )


def compared_settings(entries: Iterable[CellRecord]) -> dict[str, str]:
    """Field -> value, as text, of what the numbers of one run's records depend on: its identity, and the sections of
    their protocols; what has joined since has its default.
    """
    settings: dict[str, str] = {}
    for record in {entry.record.protocol: entry.record for entry in entries}.values():
        content = keys.config_of(record).model_dump(mode="json")
        sections = {*IDENTITY, *PROTOCOLS[record.protocol].sections}
        flat = flatten({section: content[section] for section in sections})
        settings |= {name: str(value) for name, value in flat.items() if name not in _NOT_COMPARED}
    return settings


def differing(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Fields with several values; a parameter of one target counts, a section of a protocol that others have not run
    does not.
    """
    values: dict[str, set[str]] = {}
    for config in configs:
        for name, value in config.items():
            values.setdefault(name, set()).add(value)
    for name in [name for name in values if name.startswith("target.")]:
        values[name] |= {config.get(name, "-") for config in configs}
    return sorted(name for name, several in values.items() if len(several) > 1)


def differing_fields(entries: Sequence[CellRecord]) -> list[str]:
    """Fields in which the rows' configs differ; all of them are what the grid names, or the target's."""
    # of configs that differ in their seed alone one stands for all
    shared = {(keys.shared_text(entry.record), entry.record.protocol): entry for entry in entries}
    found = differing([compared_settings([entry]) for entry in shared.values()])
    allowed = {field for entry in entries for field in entry.cell.varies()}
    varies_target = any(entry.cell.varies_target() for entry in entries)
    outside = [
        name
        for name in found
        if name not in allowed and not (varies_target and name.startswith("target."))
    ]
    if outside:
        raise UserError(f"rows differ in {', '.join(outside)}: this is no closed table")
    return found
