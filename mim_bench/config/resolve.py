"""From names and overrides to one frozen `RunConfig`, with the origin of every value.

Precedence, written once: defaults < preset < recipe < benchmark grid < command line.
"""

import importlib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mim_bench.config import recipe as recipes
from mim_bench.config.run import RunConfig
from mim_bench.errors import UserError, suggest
from mim_bench.schema import Frozen
from mim_bench.target import Geometry, Target


@dataclass(frozen=True)
class Resolved:
    """A config and where each of its values came from."""

    config: RunConfig
    origin: dict[str, str]
    """Field (`pretrain.epochs`) -> `default`, `preset tiny`, `recipe hog`, `benchmark`, `command line`."""


def target_class(class_path: str) -> type[Target]:
    """The class behind `module:Class`, built-in or outside code alike.

    Raises:
        UserError: not of that form, not importable, or no Target.
    """
    module, _, name = class_path.partition(":")
    if not module or not name:
        raise UserError(f"target class '{class_path}' is not of the form 'module:Class'")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"target class '{class_path}' cannot be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Target)):
        raise UserError(f"target class '{class_path}' is no mim_bench.target.Target")
    return found


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
    if wants_tuple and not text.startswith("["):
        return [parse_value(part.strip(), str) for part in text.split(",") if part.strip()]
    if str in options:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _is_none(value: Any, annotation: Any) -> bool:
    """True for the word `none` where a field may be unset; TOML has no value for that."""
    may_be_unset = _is_union(annotation) and type(None) in typing.get_args(annotation)
    return may_be_unset and isinstance(value, str) and value.lower() in ("none", "null")


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def split_override(text: str) -> tuple[str, str]:
    """`section.field=value` -> (`section.field`, `value`).

    Raises:
        UserError: not of that form.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override '{text}' is not of the form section.field=value")
    return key.strip(), value.strip()


def explain(error: ValidationError) -> str:
    """One line for pydantic's first complaint: field, value, what is allowed."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        return message
    return f"{where}={first['input']!r}: {message[0].lower()}{message[1:]}"


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

    def __init__(self, target_name: str, cls: type[Target]) -> None:
        self.target_name = target_name
        self.leaves = fields(RunConfig)
        params = {name: field.annotation for name, field in cls.Params.model_fields.items()}
        self.leaves |= {f"target.{name}": annotation for name, annotation in params.items()}
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}

    def add(self, values: Mapping[str, Any], origin: str) -> None:
        for key, value in values.items():
            section, _, rest = key.partition(".")
            name = f"target.{rest}" if section == self.target_name and rest else key
            name = name.replace("target.params.", "target.")
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
        same = [leaf for leaf in self.leaves if leaf.partition(".")[0] == section]
        if same:
            return suggest(name, same)
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

    Raises:
        UserError: an unknown name or field, or a value that is not allowed.
    """
    found = recipes.load_recipe(target)
    name = Path(target).stem
    cls = target_class(found.class_path)
    layers = _Layers(name, cls)

    content = recipes.read("preset", preset)
    content.pop("description", None)
    for other, params in content.pop("target", {}).items():
        if other == name:
            layers.add(
                {f"target.{key}": value for key, value in params.items()}, f"preset {preset}"
            )
    layers.add(flatten(content), f"preset {preset}")
    layers.add({f"target.{key}": value for key, value in found.params.items()}, f"recipe {name}")
    layers.add(grid or {}, "benchmark")
    layers.add(dict(map(split_override, overrides)), "command line")

    nested: dict[str, Any] = {"preset": Path(preset).stem}
    params: dict[str, Any] = {}
    for key, value in layers.values.items():
        section, _, rest = key.partition(".")
        if section == "target":
            params[rest] = value
        elif rest:
            nested.setdefault(section, {})[rest] = value
        else:
            nested[section] = value
    try:
        full_params = cls.Params.model_validate(params).model_dump(mode="json")
    except ValidationError as error:
        raise UserError(f"target.{explain(error)}") from None
    nested["target"] = {
        "name": name,
        "class_path": found.class_path,
        "version": cls.version,
        "params": full_params,
    }
    config = validated(nested)
    origin = {key: layers.origin.get(key, "default") for key in layers.leaves}
    return Resolved(config, origin)


def validated(content: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from plain values; what is wrong becomes one line.

    Raises:
        UserError: a value that is not allowed.
    """
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise UserError(explain(error)) from None


def load_config(
    target: str = "hog", preset: str = "tiny", overrides: Sequence[str] = ()
) -> RunConfig:
    """The resolved config alone; see `resolve`."""
    return resolve(target, preset, overrides).config


def geometry(config: RunConfig) -> Geometry:
    """What a target is built for; the config must be complete (see `mim_bench.data.run_data.complete`)."""
    data = config.data
    if data.image_size is None or data.in_chans is None or data.mean is None or data.std is None:
        raise ValueError("the config still leaves image size, channels or statistics to the data")
    return Geometry(data.image_size, config.model.patch_size, data.in_chans, data.mean, data.std)


def make_target(config: RunConfig) -> Target:
    """The target of a complete config, not yet fitted."""
    cls = target_class(config.target.class_path)
    return cls(cls.Params.model_validate(config.target.params), geometry(config))


def build_target(
    name_or_toml: str,
    *,
    image_size: int | tuple[int, int],
    patch_size: int,
    in_chans: int = 3,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    **params: Any,
) -> Target:
    """A target by recipe name or path, for use outside a run.

    Args:
        image_size: pixels, side or (height, width); a multiple of `patch_size`.
        mean, std: per channel, of images in [0, 1]; a single value serves every channel.
        params: over the recipe's own.

    Raises:
        UserError: unknown recipe or parameter, a value not allowed, or sizes that do not fit.
    """
    found = recipes.load_recipe(name_or_toml)
    cls = target_class(found.class_path)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size[0] % patch_size or size[1] % patch_size:
        raise UserError(f"image_size={size} is no multiple of patch_size={patch_size}")

    def per_channel(values: Sequence[float], field: str) -> tuple[float, ...]:
        if len(values) not in (1, in_chans):
            raise UserError(f"{field} has {len(values)} values for in_chans={in_chans}")
        return tuple(values) * (in_chans if len(values) == 1 else 1)

    built = Geometry(size, patch_size, in_chans, per_channel(mean, "mean"), per_channel(std, "std"))
    try:
        return cls(cls.Params.model_validate({**found.params, **params}), built)
    except ValidationError as error:
        raise UserError(f"target '{name_or_toml}': {explain(error)}") from None
