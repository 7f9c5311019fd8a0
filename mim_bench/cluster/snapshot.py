"""The code as it is when jobs are queued, so that a later change of the checkout does not reach them.

`<out>/code/<commit>-<digest>/` holds the package, the recipes, the benchmarks and the commit. A job finds it
first on its path; its records name the snapshot's commit. The same code is kept once.
"""

import hashlib
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from mim_bench.config import recipe
from mim_bench.errors import UserError
from mim_bench.records import provenance


@dataclass(frozen=True)
class Snapshot:
    """A copy of the code, written or yet to be written."""

    folder: Path
    """Absolute; the package lies in it."""
    commit: str
    """Content of its file COMMIT."""
    files: tuple[tuple[Path, str], ...]
    """Source path, and path below the folder."""

    def write(self) -> None:
        """Writes the copy, unless it is there."""
        if self.folder.is_dir():
            return
        temporary = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        try:
            for source, path in self.files:
                (temporary / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, temporary / path)
            (temporary / "COMMIT").write_text(self.commit + "\n")
            os.rename(temporary, self.folder)  # noqa: PTH104 (atomic, as os.replace elsewhere)
        except OSError as error:
            if not self.folder.is_dir():  # else another process was faster
                raise UserError(f"cannot write {self.folder}: {error}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def setup(self) -> list[str]:
        """Shell commands that put it first on a job's path, and what this process has there behind it.

        Without PYTHONSAFEPATH `python -m` would put the job's folder, perhaps the checkout, before it.
        """
        current_folder = [str(Path.cwd())] if {"", str(Path.cwd())} & set(sys.path[:1]) else []
        behind = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        path = os.pathsep.join(map(shlex.quote, [str(self.folder), *current_folder, *behind]))
        return [
            "export PYTHONSAFEPATH=1",
            f'export PYTHONPATH={path}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        ]


def snapshot(out: Path) -> Snapshot:
    """The running code's snapshot below `out`; nothing is written yet."""
    root = recipe.PACKAGE.parent
    files = _files(recipe.PACKAGE, recipe.PACKAGE.name)
    if (
        recipe.folder("targets").parent == root
    ):  # a checkout; a wheel has its recipes inside the package
        files += [pair for name in ("targets", "benchmarks") for pair in _files(root / name, name)]
        files.append((root / "pyproject.toml", "pyproject.toml"))
    code = provenance.code()
    commit = f"{code.commit} dirty" if code.dirty else code.commit
    digest = hashlib.sha256(commit.encode())
    for source, path in sorted(files, key=lambda pair: pair[1]):
        digest.update(f"\0{path}\0{source.stat().st_size}\0".encode())
        digest.update(source.read_bytes())
    name = f"{code.commit[:12]}-{digest.hexdigest()[:8]}"
    return Snapshot(out.resolve() / "code" / name, commit, tuple(files))


def _files(folder: Path, name: str) -> list[tuple[Path, str]]:
    return [
        (path, f"{name}/{path.relative_to(folder).as_posix()}")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
