"""Recipes, presets and benchmarks: TOML files found by name next to the package, inside the wheel, or by path.

Never by the chance content of the current folder: a name is looked up in the checkout that the running
package belongs to, else in the copy that the wheel carries, targets in installed packages too. A path must end in
`.toml`.
"""

import copy
import tomllib
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mim_bench.errors import UserError, check_printable, suggest
from mim_bench.schema import Frozen

PACKAGE = Path(__file__).resolve().parents[1]


def folder(category: str) -> Path:
    """Folder of the shipped `targets`, `benchmarks` or `preset` files."""
    if category == "preset":
        return PACKAGE / "config" / "presets"
    checkout = PACKAGE.parent / category
    if (PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return PACKAGE / "_shipped" / category


def names(category: str) -> list[str]:
    """Names of the shipped files of a kind, and of targets that installed packages bring, sorted."""
    shipped = {path.stem for path in folder(category).glob("*.toml")}
    return sorted(shipped | set(_outside() if category == "targets" else ()))


@cache
def _outside() -> Mapping[str, EntryPoint]:
    """Targets of installed packages, entry points of the group `mim_bench.targets`: name = `module:Class`."""
    return {entry.name: entry for entry in entry_points(group="mim_bench.targets")}


def _content_of(entry: EntryPoint) -> dict[str, Any]:
    """Recipe content for an installed package's class; the class is not imported for it."""
    package = entry.dist.name if entry.dist else entry.value.partition(".")[0]
    release = f"{package} {entry.dist.version}" if entry.dist else package
    return {
        "class": entry.value,
        "description": f"{entry.value.partition(':')[2]} of {package}",
        "paper": release,
    }


def read(category: str, name: str) -> dict[str, Any]:
    """The content of a file by name, or by a path ending in `.toml`."""
    singular = category.removesuffix("s")
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{singular} file '{name}' does not exist")
    else:
        path = folder(category) / f"{name}.toml"
        if name not in names(category):
            raise UserError(f"unknown {singular} '{name}'; {_meant(category, name)}")
        if not path.is_file():  # a shipped recipe comes before a package's of the same name
            return _content_of(_outside()[name])
    try:
        content = copy.deepcopy(_parsed(path, path.stat().st_mtime_ns))
        _check_texts(content, str(path))
        return content
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no valid TOML: {error}") from None


def _meant(category: str, name: str) -> str:
    """Suggestion for an unknown name: another spelling, a file without its suffix, a method instead of its target."""
    snake_case = name.lower().replace("-", "_")
    if Path(f"{name}.toml").is_file():
        return f"a file is named with its suffix: {name}.toml"
    if snake_case in names(category):
        return f"nearest: {snake_case}"
    if category == "targets":
        for target in names(category):
            if snake_case in (
                method.lower() for method in read(category, target).get("methods", ())
            ):
                return f"the target of {name} is {target}"
    return suggest(name, names(category))


def _check_texts(content: Any, location: str) -> None:
    """Checks texts of a file, which reach terminals, pages and TeX: on one line each."""
    if isinstance(content, str):
        check_printable(content, f"{location}: text")
    elif isinstance(content, dict):
        for part in (*content, *content.values()):
            _check_texts(part, location)
    elif isinstance(content, list):
        for part in content:
            _check_texts(part, location)


@lru_cache(maxsize=256)
def _parsed(path: Path, changed_ns: int) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


class Recipe(Frozen):
    """The content of a file in `targets/`.

    It cannot touch optimiser, data or schedule but in `as_published`, which the division of that name alone reads.
    """

    class_path: str
    """`module:Class`, written `class` in the file."""
    description: str
    """One line for `list targets`."""
    paper: str
    """Paper that the target comes from."""
    methods: tuple[str, ...] = ()
    """Published methods whose target it is."""
    params: dict[str, Any] = {}
    """Values for the class's parameters."""
    as_published: dict[str, Any] = {}
    """The paper's own mask, pipeline, augmentation and optimiser, section by section as in a preset, `target` for
    its parameters; `"x0.5"` is half of the preset's. Read by benchmarks of the division `as_published` alone."""


_FIELDS = ("as_published", "class", "description", "methods", "paper", "params")


def load_recipe(name: str) -> Recipe:
    """A target's recipe by name or path."""
    content = read("targets", name)
    if "class" in content:
        content["class_path"] = content.pop("class")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])).replace("class_path", "class")
        if first["type"] == "missing":
            unknown = [key for key in content if key not in (*_FIELDS, "class_path")]
            seen = f"; there is {', '.join(map(repr, unknown))}" if unknown else ""
            raise UserError(f"target recipe '{name}': field '{field}' is missing{seen}") from None
        allowed = suggest(field, _FIELDS)
        raise UserError(
            f"target recipe '{name}': field '{field}': {first['msg']}; {allowed}"
        ) from None
