"""Build hook: a wheel carries the recipes, and wheel and sdist the commit they were built from."""

import subprocess
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Shipped(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "editable":  # reads both from the checkout
            return
        root, ships = Path(self.root), build_data["force_include"]
        where = "mim_bench/_shipped/" if self.target_name == "wheel" else ""
        if where:
            for kind in ("targets", "benchmarks"):
                if (root / kind).is_dir():  # git keeps no empty folder
                    ships[str(root / kind)] = where + kind
        if (root / ".git").exists():
            self.file = tempfile.NamedTemporaryFile("w")  # noqa: SIM115 (outlives this method)
            self.file.write(commit(root))
            self.file.flush()
            ships[self.file.name] = where + "COMMIT"
        elif where and (root / "COMMIT").is_file():  # an unpacked sdist
            ships[str(root / "COMMIT")] = where + "COMMIT"


def commit(root):
    """`<hash> clean` or `<hash> dirty`, as mim_bench.environment.code reads it."""

    def git(*arguments):
        command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    source = ("mim_bench", "targets", "benchmarks", "pyproject.toml")
    state = "dirty" if git("status", "--porcelain", "--", *source) else "clean"
    return f"{git('rev-parse', 'HEAD')} {state}\n"
