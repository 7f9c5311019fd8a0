"""A run's folder: whose it is, what config it holds, how two runs differ, where records lie."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout  # the cross-platform lock that torch itself depends on

from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.resolve import flatten, validated
from mim_bench.config.run import RunConfig, digest
from mim_bench.errors import UserError
from mim_bench.files import check_regular, file_sha256, read_json, remove_unfinished, write_text


def run_path(out: Path, config: RunConfig) -> Path:
    """The run's folder: below `out`, or `out` itself if it is a run folder."""
    return out if (out / "config.json").is_file() else out / config.run_id


class Busy(UserError):
    """A run that another process is busy with."""


@contextmanager
def lock(out: Path, config: RunConfig) -> Iterator[None]:
    """Keeps a second process out of the same run; freed by the system if this one is killed."""
    folder = run_path(out, config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(_lock_path(folder), timeout=0):
            yield
    except Timeout:
        raise Busy(f"another process is busy with {folder}") from None


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def is_busy(folder: Path) -> bool:
    """True if a process of this machine holds the lock of a run folder."""
    if not (_lock_path(folder).is_file() and (folder / "config.json").is_file()):
        return False
    try:
        with FileLock(_lock_path(folder), timeout=0):
            return False
    except Timeout:
        return True


def claim(out: Path, config: RunConfig, *, force: bool) -> Path:
    """The run's folder, made if need be."""
    folder = run_path(out, config)
    if force and folder.is_dir():
        shutil.rmtree(folder)
    path = folder / "config.json"
    if path.is_file():
        existing = read_config(folder)
        if existing.hash != config.hash:
            fields = ", ".join(sorted(difference(existing, config))) or "fields of another version"
            raise UserError(
                f"{folder} holds a run of a different config ({fields}); choose another --out"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} exists but is no run folder; choose another --out")
    remove_unfinished(folder)  # the caller holds the lock
    write_text(path, config.model_dump_json(indent=1) + "\n")
    return folder


@contextmanager
def removed_unless_begun(folder: Path) -> Iterator[None]:
    """Context in which a mistake before the first step leaves no run folder behind; the caller has claimed it."""
    try:
        yield
    except UserError:
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {
            "config.json",
            "manifest.json",
        }:
            shutil.rmtree(folder)
        raise


def read_config(folder: Path) -> RunConfig:
    """The config of a run folder."""
    path = folder / "config.json"
    try:
        content = read_json(path)
    except UserError as error:
        raise UserError(f"{folder} is no run folder: {error}") from None
    return validated(content)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder."""
    path = folder / "manifest.json"
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("artefacts", {}), dict):
        raise UserError(f"{path} is damaged: no manifest")
    return content


def seal(folder: Path, *names: str) -> None:
    """Writes size and sha256 of finished files of a run into its manifest; absent ones are left out."""
    manifest = read_manifest(folder)
    artefacts = manifest.setdefault("artefacts", {})
    for name in names:
        if (folder / name).is_file():
            size = check_regular(folder / name)
            artefacts[name] = {"bytes": size, "sha256": file_sha256(folder / name)}
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def check(folder: Path, *names: str, content: bool = True) -> None:
    """Refuses files of a run that are not what was written; by default all that the manifest lists.

    Runs of before the manifest listed them pass. `content`: their hashes too, not their sizes alone.
    """
    artefacts = read_manifest(folder).get("artefacts", {})
    for name in names or artefacts:
        if name not in artefacts:
            continue
        path, want = folder / name, artefacts[name]
        hint = "; `run` with --force starts again"
        try:
            size = check_regular(path)
        except UserError as error:
            raise UserError(f"{error}{hint}") from None
        if size != want["bytes"]:
            raise UserError(f"{path} is damaged: {size:,} bytes, not {want['bytes']:,}{hint}")
        if content and file_sha256(path) != want["sha256"]:
            raise UserError(
                f"{path} is damaged or of another run: its sha256 is not the manifest's{hint}"
            )


def difference(a: RunConfig, b: RunConfig) -> dict[str, tuple[object, object]]:
    """Fields of the identity in which two configs differ -> their two values."""
    of_a, of_b = flatten(a.identity()), flatten(b.identity())
    missing = "-"
    names = [*of_a, *(name for name in of_b if name not in of_a)]
    pairs = {name: (of_a.get(name, missing), of_b.get(name, missing)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def record_path(folder: Path, protocol: str) -> Path:
    """Path of a run's record of a protocol."""
    return folder / "records" / f"{protocol}.json"


def record_hash(config: RunConfig, protocol: str) -> str:
    """sha256 of all that a record's numbers depend on."""
    entry = PROTOCOLS[protocol]
    content = config.model_dump(mode="json")
    sections = [content[section] for section in entry.sections]
    readout = config.evaluate.readout if entry.has_readouts else None
    return digest([config.hash, protocol, entry.version, sections, readout])


def fit_path(out: Path, config: RunConfig, key: str) -> Path:
    """Path of a target's fitted state."""
    return out / "fits" / f"{config.target.name}-{key[:16]}.safetensors"


def sweep_key(config: RunConfig) -> str:
    """The same before the images are read: a sweep's runs of one seed and data set share a fit by it."""
    return digest(fit_parts(config))


def fit_parts(config: RunConfig) -> list[object]:
    """Parts of a config that a fitted target depends on."""
    parts = config.model_dump(mode="json", include={"target", "data", "augment"})
    return [parts, config.model.patch_size, config.seed]
