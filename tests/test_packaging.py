"""What is shipped: lock, wheel, licence, and that no tracked file knows the machine it was written on."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mim_bench.records import provenance

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = [
    Requirement(line.partition("#")[0])
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line.partition("#")[0].strip()
]
PINNED = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in LOCK}
CHECKOUT = (ROOT / ".git").exists()


def tracked() -> list[Path]:
    names = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_lock__pins_each_package_once():
    assert all(re.fullmatch(r"==[\w.!+]+", str(pin.specifier)) for pin in LOCK)
    assert len(PINNED) == len(LOCK)


def test_lock__meets_every_declared_dependency():
    extras = PROJECT["optional-dependencies"].items()
    # a client of a service, which tests stand in for
    lines = [line for name, extra in extras if name != "wandb" for line in extra]
    for dependency in map(Requirement, [*PROJECT["dependencies"], *lines]):
        version = PINNED[canonicalize_name(dependency.name)]
        assert dependency.specifier.contains(version), dependency


def test_lock__torch_and_torchvision_are_of_one_release():
    torch, torchvision = (PINNED[name].split(".") for name in ("torch", "torchvision"))
    assert int(torch[0]) == 2
    assert int(torchvision[1]) == int(torch[1]) + 15  # 2.6 and 0.21, 2.11 and 0.26, ...
    assert "+" not in PINNED["torch"], "a local build is on no index"


def test_lock__is_the_same_on_every_python():
    assert not [
        str(pin)
        for pin in LOCK
        if "python" in str(pin.marker) and "emscripten" not in str(pin.marker)
    ]


@pytest.mark.skipif(not CHECKOUT, reason="no checkout")
def test_tracked_files__name_no_package_host_and_no_folder_of_a_machine():
    # In pieces, so that this file does not name them either.
    hosts = r"(py" r"pi|python" r"hosted|deb\.deb" r"ian|registry\.npm" r"js)\.(org|com)"
    folders = r"(?<![\w.-])/(wo" r"rk|fa" r"rm|ro" r"ot|ho" r"me|opt/wh" r"eels|opt/py" r"pi)/"
    known = re.compile(f"{hosts}|{folders}".encode())
    # records are evidence: they say which folder and command they were made with, and nothing else of a result may
    evidence = ("results/*/*/records/*.json", "results/*/*/records.csv", "results/*/*/sweep.json")
    others = [path for path in tracked() if not any(path.match(glob) for glob in evidence)]
    found = {path.name: known.search(path.read_bytes()) for path in others}
    assert not {name: match.group() for name, match in found.items() if match}


def test_makefile__help_names_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (help .*)$", makefile, re.MULTILINE)[1].split()
    assert {"run", "test", "lock", "wheel", "clean"} < set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        assert target == "help" or f"make {target} " in makefile


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(folder),
    ]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return zipfile.Path(next(folder.glob("*.whl")))


def test_wheel__holds_code_recipes_presets_and_data(wheel: zipfile.Path):
    inside = set(wheel.root.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mim_bench").rglob("*.py")}
    presets = {
        str(path.relative_to(ROOT)) for path in (ROOT / "mim_bench/config/presets").glob("*.toml")
    }
    recipes = {
        f"mim_bench/_shipped/{kind}/{path.name}"
        for kind in ("targets", "benchmarks")
        for path in (ROOT / kind).glob("*.toml")
    }
    data = {
        f"mim_bench/data/embedded/{name}"
        for name in ("train.parquet", "test.parquet", "LICENSE-fashion-mnist")
    }
    assert "mim_bench/_shipped/targets/hog.toml" in recipes
    assert "mim_bench/config/presets/tiny.toml" in presets
    assert not (modules | presets | recipes | data) - inside
    assert {name.partition("/")[0] for name in inside} == {
        "mim_bench",
        f"mim_bench-{PROJECT['version']}.dist-info",
    }


def test_wheel__carries_both_licences(wheel: zipfile.Path):
    licences = {
        name.rpartition("/")[2] for name in wheel.root.namelist() if "dist-info/licenses/" in name
    }
    assert {"LICENSE", "LICENSE-fashion-mnist"} <= licences
    assert "the mim_bench authors" in (ROOT / "LICENSE").read_text()


@pytest.mark.skipif(not CHECKOUT, reason="no checkout")
def test_wheel__knows_the_commit_it_was_built_from(wheel: zipfile.Path):
    code = provenance.code()
    carried = (wheel / "mim_bench/_shipped/COMMIT").read_text()
    assert carried == f"{code.commit} {'dirty' if code.dirty else 'clean'}\n"


@pytest.mark.parametrize("where", ["COMMIT", "mim_bench/_shipped/COMMIT"])
def test_code__is_read_from_what_a_copy_or_a_wheel_carries(where: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        provenance, "__file__", str(tmp_path / "mim_bench" / "records" / "provenance.py")
    )
    read = provenance._code.__wrapped__  # without the cache
    assert read() == provenance.Code(commit=f"wheel-{PROJECT['version']}", dirty=False)
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_text("0123abc dirty\n")
    assert read() == provenance.Code(commit="0123abc", dirty=True)
