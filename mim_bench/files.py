"""Files that are whole or not there: one atomic write for every kind, and hashes of content."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mim_bench.errors import UserError


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
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}{hint and f'; {hint}'}") from None
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def copy_file(source: Path, target: Path) -> None:
    """Copies a file's content, atomically: others may read the folder meanwhile."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def file_sha256(path: Path) -> str:
    """sha256 of a file's content. Raises UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
