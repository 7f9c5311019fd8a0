"""Prints SETTINGS.md: every setting with its default and meaning, from the docstrings of the config models.

Called as `python tools/settings_reference.py > SETTINGS.md`.
"""

import sys
import typing
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from mim_bench.cluster.settings import Cluster
from mim_bench.config import recipe
from mim_bench.config.benchmark import Axis, Benchmark, Published, Variant
from mim_bench.config.run import RunConfig
from mim_bench.config.target_params import BUILT_IN
from mim_bench.schema import Frozen

_HEAD = """# Settings

Made by `python tools/settings_reference.py > SETTINGS.md`. A setting is written `section.field=value` behind a
command, and in a preset's file under `[section]`. The defaults are MAE's at the size of ImageNet; presets and recipes
change them, and `python -m mim_bench config show --target hog --preset tiny` prints what a run would use. Several
values: `a,b`. `none` unsets what may be unset. Settings of a target are written `hog.num_bins=12`, in a preset under
`[target.hog]`.

A run's name and hash cover `seed`, the target, `data`, `augment`, `mask`, `model` and `pretrain`: another value
there is another run. Evaluation settings are part of a record; `runtime` is part of neither."""


def nested(field: FieldInfo) -> type[Frozen] | None:
    """The schema that a field consists of."""
    options = [field.annotation, *typing.get_args(field.annotation)]
    found = (o for o in options if isinstance(o, type) and issubclass(o, Frozen))
    return next(found, None)


def written(value: Any) -> str:
    """A value as on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(written, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def words(annotation: Any) -> tuple[str, ...]:
    """The words that a field takes, alone or in a list."""
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return next(filter(None, map(words, typing.get_args(annotation))), ())


def meaning(field: FieldInfo) -> str:
    """A field's docstring in one line; what it leaves out of the allowed words or fields is added."""
    schema = nested(field)
    text = field.description or (schema.__doc__ if schema else None) or ""
    text = text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    names = tuple(schema.model_fields) if schema else words(field.annotation)
    if any(f"`{name}`" not in text for name in names):
        text += f" {'Fields' if schema else 'Allowed'}: {', '.join(f'`{name}`' for name in names)}."
    return text


def section(title: str, model: type[Frozen], prefix: str = "", *leave_out: str) -> str:
    """A heading, what the section is, and one line for each of its fields."""
    about = (model.__doc__ or "").partition("\n")[0]
    lines = [f"\n## {title}\n", about, "", "| name | default | meaning |", "| --- | --- | --- |"]
    for key, field in model.model_fields.items():
        if key not in leave_out:
            default = field.get_default(call_default_factory=True)
            is_plain = not nested(field) or default is None
            shown = "required" if field.is_required() else written(default) if is_plain else ""
            shown = f"`{shown}`" if shown not in ("", "required", "{}") else shown.strip("{}")
            lines.append(f"| `{prefix}{key}` | {shown} | {meaning(field)} |")
    return "\n".join(lines)


def sections() -> Iterator[str]:
    """The page, part by part."""
    yield _HEAD
    models = {
        key: schema for key, field in RunConfig.model_fields.items() if (schema := nested(field))
    }
    yield section("seed", RunConfig, "", "preset", *models)
    for key, schema in models.items():
        if key != "target":
            yield section(key, schema, f"{key}.")
    for name in recipe.names("targets"):
        params = BUILT_IN[recipe.load_recipe(name).class_path]
        yield section(f"target {name}", params, f"{name}.")
    yield section("A benchmark's file", Benchmark)
    yield section("[[variants]] of a benchmark's file", Variant)
    yield section("[figure] of a benchmark's file", Axis)
    yield section("[published] of a benchmark's file", Published)
    yield section("A target's recipe", recipe.Recipe).replace("`class_path`", "`class`")
    yield section("cluster.toml", Cluster, "cluster.")


def page() -> str:
    return "\n".join(sections()) + "\n"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # pyright: ignore[reportAttributeAccessIssue]
    sys.stdout.write(page())
