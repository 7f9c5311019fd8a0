"""Resolution of names and overrides into one frozen `RunConfig`, with the origin of every value.

Precedence, written once: defaults < preset < recipe < benchmark grid < command line.
"""

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mim_bench.config import recipe as recipes
from mim_bench.config.run import RunConfig
from mim_bench.config.target_params import BUILT_IN
from mim_bench.errors import UserError, check_printable, suggest
from mim_bench.schema import Frozen


@dataclass(frozen=True)
class Resolved:
    """A config and where each of its values came from."""

    config: RunConfig
    origin: dict[str, str]
    """Field (`pretrain.epochs`) -> `default`, `preset tiny`, `recipe hog`, `benchmark`, `command line`."""


def target_schema(class_path: str) -> tuple[type[Frozen], int]:
    """Parameters and version of a target's class; a built-in one is not imported for it."""
    if class_path in BUILT_IN:
        params = BUILT_IN[class_path]
        return params, params.version
    from mim_bench.target import target_class

    cls = target_class(class_path)
    return cls.Params, cls.version


def fields(model: type[Frozen], prefix: str = "") -> dict[str, Any]:
    """Dotted names of the settable leaves of a schema -> their annotation; the target block left out."""
    leaves: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if name == "target":
            continue
        if isinstance(annotation, type) and issubclass(annotation, Frozen):
            leaves |= fields(annotation, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = annotation
    return leaves


def parse_value(text: str, annotation: Any) -> Any:
    """The value of `key=text`: a TOML value, a bare word, `none`, or a comma list for tuple fields."""
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    if _is_none(text, annotation):
        return None
    wants_tuple = any(typing.get_origin(option) is tuple for option in options)
    if wants_tuple and text.lower() == "none":
        return []
    if wants_tuple and not text.startswith("["):
        return [parse_value(part.strip(), str) for part in text.split(",") if part.strip()]
    if str in options:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


_NONE = ("none", "null", "off", "false")


def _is_none(value: Any, annotation: Any) -> bool:
    """True for the word `none` where a field may be unset; TOML has no value for that."""
    may_be_unset = _is_union(annotation) and type(None) in typing.get_args(annotation)
    return may_be_unset and isinstance(value, str) and value.lower() in _NONE


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def split_override(text: str) -> tuple[str, str]:
    """`section.field=value` -> (`section.field`, `value`)."""
    check_printable(text, "setting")
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override '{text}' is not of the form section.field=value")
    return key.strip(), value.strip()


_BOUNDS = {
    "gt": "greater than",
    "ge": "greater than or equal to",
    "lt": "less than",
    "le": "less than or equal to",
}
"""Bounds of a number, in pydantic's words."""


def _bounds(model: type[BaseModel], location: Sequence[str | int]) -> str:
    """All bounds of a field, of which pydantic names the one that is broken; empty for an element of a list."""
    field = None
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            return ""
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return " and ".join(
        f"{words} {getattr(bound, name)}"
        for name, words in _BOUNDS.items()
        for bound in (field.metadata if field else ())
        if hasattr(bound, name)
    )


def explain(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """One line for pydantic's first complaint: field, value, what is allowed; with its model every bound."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        is_named = len(first["loc"]) < 2 or location in message
        return message if is_named else f"{location}: {message}"
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):
        location = ".".join(str(part) for part in first["loc"][:-1])
        message = f"{len(first['input'])} of the numbers that it takes; allowed: one more"
    elif first["type"] == "missing":
        return f"{location} is missing"
    message = message.replace("Input should be ", "allowed: ")
    message = re.split(", (?:unable|got)", message)[0]
    if model and re.search("(greater|less)_than", first["type"]):
        bounds = _bounds(model, first["loc"])
        message = f"allowed: {bounds}" if bounds else message
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        expected = first["msg"]
        if near := difflib.get_close_matches(first["input"], re.findall("'([^']+)'", expected)):
            message = f"nearest: {', '.join(near)}; {message}"
    return f"{location}={first['input']!r}: {message[0].lower()}{message[1:]}"


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections -> dotted names of their leaves."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


class _Layers:
    """Collects values layer by layer; a later layer wins; unknown names are refused at once."""

    def __init__(self, target_name: str, params: type[Frozen]) -> None:
        self.target_name = target_name
        self.leaves = fields(RunConfig)
        self.leaves |= {
            f"target.{name}": field.annotation for name, field in params.model_fields.items()
        }
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}

    def add(self, values: Mapping[str, Any], origin: str) -> None:
        for key, value in values.items():
            section, _, field = key.partition(".")
            name = f"target.{field}" if section == self.target_name and field else key
            name = name.replace("target.params.", "target.")
            if name == "preset":
                raise UserError(f"{origin}: preset={value} is no setting; use --preset {value}")
            if name not in self.leaves:
                raise UserError(f"{origin}: unknown field '{key}'; {self._suggest(name)}")
            annotation = self.leaves[name]
            if origin == "command line":
                value = parse_value(value, annotation)
            self.values[name] = None if _is_none(value, annotation) else value
            self.origin[name] = origin

    def _suggest(self, name: str) -> str:
        """Nearest fields of the section, or nearest of all where there is no such section."""
        section = name.partition(".")[0]
        in_section = [leaf for leaf in self.leaves if leaf.partition(".")[0] == section]
        if in_section:
            text = suggest(name, in_section)
            return text.replace("target.", f"{self.target_name}.") if section == "target" else text
        if name != section and section in recipes.names("targets"):
            return f"'{section}' is another target's section; this one is '{self.target_name}'"
        if whole := [leaf for leaf in self.leaves if leaf.rpartition(".")[2] == name]:
            nearest = whole[0].replace("target.", f"{self.target_name}.")
            return f"nearest: {nearest} (`config show` lists every field)"
        sections = {leaf.partition(".")[0] for leaf in self.leaves}
        return f"{suggest(section, sections)} (`config show` lists every field)"


def resolve(
    target: str,
    preset: str = "tiny",
    overrides: Sequence[str] = (),
    grid: Mapping[str, Any] | None = None,
) -> Resolved:
    """Resolves a run's config.

    Args:
        target: name of a recipe, or path of one ending in `.toml`.
        preset: name of a preset, or path of one ending in `.toml`.
        overrides: `section.field=value`; `hog.num_bins=12` means the target's own field.
        grid: a benchmark's cell, dotted field -> value.
    """
    recipe = recipes.load_recipe(target)
    name = Path(target).stem
    schema, version = target_schema(recipe.class_path)
    layers = _Layers(name, schema)

    content = recipes.read("preset", preset)
    for key_of_preset in ("description", "primary"):  # of the preset, not of the run
        content.pop(key_of_preset, None)
    for other, params in content.pop("target", {}).items():
        if other == name:
            layers.add(
                {f"target.{key}": value for key, value in params.items()}, f"preset {preset}"
            )
    layers.add(flatten(content), f"preset {preset}")
    layers.add({f"target.{key}": value for key, value in recipe.params.items()}, f"recipe {name}")
    layers.add(grid or {}, "benchmark")
    layers.add(dict(map(split_override, overrides)), "command line")

    nested: dict[str, Any] = {"preset": Path(preset).stem}
    params: dict[str, Any] = {}
    for key, value in layers.values.items():
        section, _, field = key.partition(".")
        if section == "target":
            params[field] = value
        elif field:
            nested.setdefault(section, {})[field] = value
        else:
            nested[section] = value
    try:
        full_params = schema.model_validate(params).model_dump(mode="json")
    except ValidationError as error:
        raise UserError(f"target.{explain(error, schema)}") from None
    nested["target"] = {
        "name": name,
        "class_path": recipe.class_path,
        "version": version,
        "params": full_params,
    }
    config = validated(nested)
    origin = {key: layers.origin.get(key, "default") for key in layers.leaves}
    return Resolved(config, origin)


def validated(content: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from plain values; what is wrong becomes one line."""
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise UserError(explain(error, RunConfig)) from None


def load_config(
    target: str = "hog", preset: str = "tiny", overrides: Sequence[str] = ()
) -> RunConfig:
    """The resolved config alone; see `resolve`."""
    return resolve(target, preset, overrides).config
