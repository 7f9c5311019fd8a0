"""Files that are whole or not there: one atomic write and one careful read for every kind, and hashes of content."""

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mim_bench.errors import UserError

_MAX_JSON_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20


@contextmanager
def replacing(path: Path, hint: str = "") -> Iterator[Path]:
    """Yields a temporary path next to `path`, which it replaces when the block ends without an error.

    The folder is made if need be; after an error nothing is left behind. Raises UserError where the disk
    is full or the folder cannot be written, with `hint` at the end.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # some libraries write for the owner alone
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}{hint and f'; {hint}'}") from None
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    """The process's; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_folder(path: Path) -> None:
    """UserError where a folder, there or to be made, is a file or below one."""
    for part in (path, *path.parents):
        if part.exists():
            if not part.is_dir():
                raise UserError(f"{part} is a file, not a folder")
            return


def copy_file(source: Path, target: Path) -> None:
    """Copies a file's content, atomically: others may read the folder meanwhile."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def check_regular(path: Path, max_bytes: int | None = None) -> int:
    """Size of a file in bytes; UserError for a pipe, device or folder, which would be read for ever, and for a
    file that is not there, or larger than `max_bytes`."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} cannot be read: no regular file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise UserError(
            f"{path} cannot be read: {status.st_size:,} bytes, at most {max_bytes:,} are expected"
        )
    return status.st_size


def read_bytes(path: Path) -> bytes:
    """Content of a regular file of a sane size, such as a JSON file of this project."""
    check_regular(path, _MAX_JSON_BYTES)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def parse_json(content: bytes, path: Path) -> Any:
    """A JSON file's content. Raises UserError where it is damaged."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from None


def read_json(path: Path) -> Any:
    """Content of a JSON file of this project. Raises UserError where it is damaged."""
    return parse_json(read_bytes(path), path)


def remove_unfinished(folder: Path, *, older_than_s: float = 0.0) -> None:
    """Removes temporary files that killed processes have left below a folder."""
    for path in folder.rglob(".*.tmp"):
        if path.is_file() and time.time() - path.stat().st_mtime >= older_than_s:
            path.unlink(missing_ok=True)


def file_sha256(path: Path, max_bytes: int | None = None) -> str:
    """sha256 of a file's content. Raises UserError where it cannot be read, or is larger than `max_bytes`."""
    return file_digests(path, "sha256", max_bytes=max_bytes)[0]


def file_digests(path: Path, *algorithms: str, max_bytes: int | None = None) -> list[str]:
    """Digests of a file's content, which is read once; raises as `file_sha256`."""
    check_regular(path, max_bytes)
    digests = [hashlib.new(name) for name in algorithms]
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                for digest in digests:
                    digest.update(block)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return [digest.hexdigest() for digest in digests]
