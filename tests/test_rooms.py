"""The rooms of the package (DESIGN.md): each imports only from rooms to its left, and results need no torch."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mim_bench.config import recipe

PACKAGE = Path(__file__).parents[1] / "mim_bench"
ROOT = {"root"}
RECORDS = ROOT | {"config", "records"}
MAY_IMPORT = {
    "root": ROOT,
    "config": ROOT | {"config"},
    "records": RECORDS,
    "analysis": RECORDS | {"analysis"},
    "targets": ROOT | {"config", "targets"},
    "model": ROOT | {"config", "model"},
    "data": RECORDS | {"data"},
    "train": RECORDS | {"targets", "model", "data", "train"},
    "evaluate": RECORDS | {"targets", "model", "data", "train", "evaluate"},
    "experiment": RECORDS | {"targets", "model", "data", "train", "evaluate", "experiment"},
    "cluster": RECORDS | {"targets", "model", "data", "train", "evaluate", "experiment", "cluster"},
}
MAY_IMPORT["cli"] = set.union(*MAY_IMPORT.values()) | {"cli"}
PUBLIC = ("__init__", "__main__")
"""Modules of the root that hand out the public names of every room."""
HEAVY = ("torch", "timm", "torchvision")
COMMANDS = (
    ("--help",),
    ("list", "targets"),
    ("list", "protocols"),
    ("list", "data"),
    ("table", "targets"),
    ("figure", "targets"),
    ("validate",),
    ("status", "targets"),
    ("compare", "hog-tiny-s0-51bd2f37", "pixel-tiny-s0-c8248384"),
    ("config", "show", "--target", "dvae"),
)


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("mim_bench"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mim_bench"):
            assert not node.level, "imports are absolute"
            if node.module == "mim_bench":
                yield from (f"mim_bench.{name.name}" for name in node.names)
            else:
                yield str(node.module)


def room(module: str) -> str:
    """The room of `mim_bench.x.y`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else "root"


def test_rooms__are_those_of_the_design():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(MAY_IMPORT) - {"root"}


def test_rooms__import_only_to_the_left():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in PUBLIC:
            continue
        own = parts[0] if len(parts) > 1 else "root"
        wrong += [
            f"{'.'.join(parts)} -> {module}"
            for module in imported(path)
            if room(module) not in MAY_IMPORT[own]
        ]
    assert wrong == []


def test_analysis__imports_no_torch():
    code = f"import sys, mim_bench.analysis.table; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_command_on_results__imports_no_torch(arguments, tmp_path):
    shutil.copytree(PACKAGE.parent / "results" / "targets", tmp_path / "results" / "targets")
    code = (
        "import sys\n"
        "from mim_bench.cli.main import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_training__knows_no_target_by_name():
    """The loop, the model and the data treat every target alike."""
    targets = set(recipe.names("targets"))
    named = [
        f"{path.name}:{node.lineno} {node.value}"
        for room in ("train", "model", "data")
        for path in (PACKAGE / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in targets
    ]
    assert named == []


def test_files__stay_short():
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path.name: number for path, number in lines.items() if number > 350} == {}


def test_functions__stay_short():
    long = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                number = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{path.name}:{node.name} {number}"] if number > 60 else []
    assert long == []
