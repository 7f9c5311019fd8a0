"""The cells of a benchmark: every run of its grid, each with its resolved config.

What a row's target brings along lies between preset and grid: the paper's own settings in the division `as_published`,
what trials chose in the division `tuned`, nothing in the closed one.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mim_bench.config import recipe
from mim_bench.config.benchmark import Benchmark, Variant, at_preset, load_benchmark
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.resolve import flatten, resolve, split_override
from mim_bench.config.run import RunConfig
from mim_bench.errors import UserError, suggest

_RELATIVE = re.compile(r"x(\d*\.?\d+)")


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark."""

    config: RunConfig
    point: dict[str, Any]
    """Field of the grid -> value, relative ones worked out; `variant` -> its name."""
    relative: dict[str, float]
    """Field of the grid -> value over the preset's own, where the file says it so."""
    variant: Variant | None = None
    from_recipe: tuple[str, ...] = ()
    """Fields that its target brings along, in a division that is not closed."""

    @property
    def label(self) -> str:
        """Name of its row: the values that the grid varies."""
        return row_label(self.point)

    def varies(self) -> set[str]:
        """Fields of the resolved config that grid, variant or division set, the target's name aside."""
        return {config_field(name, self.config) for name in self._set() - {"variant", "target"}}

    def varies_target(self) -> bool:
        """True if the grid or the variant sets the target."""
        return "target" in self._set()

    def _set(self) -> set[str]:
        return (
            set(self.point) | set(self.variant.set if self.variant else ()) | set(self.from_recipe)
        )


def row_label(point: Mapping[str, Any]) -> str:
    """`hog, ratio 0.75`: the values of a point of the grid, each behind the last part of its field's name."""
    parts = []
    for field, value in point.items():
        short = field.rpartition(".")[2].replace("_", " ")
        text = f"{value:g}" if isinstance(value, float) else str(value)
        parts.append(text if field in ("target", "variant") else f"{short} {text}")
    return ", ".join(parts)


def config_field(name: str, config: RunConfig) -> str:
    """`hog.num_bins` -> `target.params.num_bins`, where hog is the target; others stay."""
    section, _, name_in_section = name.partition(".")
    return (
        f"target.params.{name_in_section}"
        if section in (config.target.name, "target") and name_in_section
        else name
    )


SEEDS = "benchmark.seeds="
"""Override that takes other seeds than the file's: `benchmark.seeds=0,1`."""


def cells(name: str, preset: str, overrides: Sequence[str] = ()) -> list[Cell]:
    """Every run of a benchmark, seeds outermost, so that whole comparisons come in first.

    Raises UserError for the override `seed`, which would give every seed's cells the same one.
    """
    benchmark = at_preset(load_benchmark(name), preset)
    if benchmark.division == "published":
        return []
    seeds = _seeds(benchmark, overrides)
    overrides = [text for text in overrides if not text.startswith(SEEDS)]
    grid_cells = []
    grid_points = itertools.product(benchmark.variants or [None], *benchmark.grid.values())
    targets: set[str] = set()
    for variant, *values in grid_points:
        point = dict(zip(benchmark.grid, values, strict=True))
        fields = {**(variant.set if variant else {}), **point}
        target = str(fields.get("target", "norm_pixel"))
        first_only = [
            name
            for name in benchmark.first_only
            if not targets or (PROTOCOLS[name].depends_on_target and target not in targets)
        ]
        targets.add(target)
        protocols = (*benchmark.protocols, *first_only)
        from_recipe = _from_recipe(benchmark, target, preset)
        grid_cells.append(
            _cell(point, variant, from_recipe, seeds[0], protocols, preset, overrides)
        )
    labels = [cell.label for cell in grid_cells] + list(benchmark.first_only)
    if benchmark.reference and benchmark.reference not in labels:
        raise UserError(
            f"reference: no row '{benchmark.reference}'; {suggest(benchmark.reference, labels)}"
        )
    # the seeds differ in nothing else
    return [
        replace(cell, config=cell.config.model_copy(update={"seed": seed}))
        for seed in seeds
        for cell in grid_cells
    ]


def _seeds(benchmark: Benchmark, overrides: Sequence[str]) -> Sequence[int]:
    declared = ", ".join(map(str, benchmark.seeds))
    for text in overrides:
        key, value = split_override(text)
        if key == "seed":
            raise UserError(f"{text}: a sweep has the seeds {declared}; use --seeds {value}")
        if key + "=" == SEEDS:
            parts = [part.strip() for part in value.split(",")]
            if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
                raise UserError(
                    f"seeds={value}: allowed: different whole numbers from 0, such as {declared}"
                )
            return [int(part) for part in parts]
    return benchmark.seeds


def as_published(target: str, preset: str) -> dict[str, Any]:
    """Field -> value of a recipe's `[as_published]`, relative ones as they stand there.

    Raises UserError naming recipe and block where a field is unknown or a value not allowed.
    """
    overrides = flatten(recipe.load_recipe(target).as_published)
    placeholders = {
        field: 1 if isinstance(value, str) and _RELATIVE.fullmatch(value) else value
        for field, value in overrides.items()
    }
    try:
        resolve(target, preset, (), placeholders)
    except UserError as error:
        reason = str(error).removeprefix("benchmark: ")
        raise UserError(f"target recipe '{target}', [as_published]: {reason}") from None
    return overrides


def _from_recipe(benchmark: Benchmark, target: str, preset: str) -> dict[str, Any]:
    """Field -> value of what a target brings along in the benchmark's division."""
    if benchmark.division == "as_published":
        return as_published(target, preset)
    if benchmark.division != "tuned":
        return {}
    chosen = benchmark.tuned.get(Path(preset).stem, {})
    if target not in chosen:
        raise UserError(
            f"tuned.{Path(preset).stem}: nothing is chosen for target '{target}'; sweep {benchmark.tuning} at this "
            f"preset, then `tune {benchmark.tuning} --preset {preset}` prints what to write there"
        )
    return chosen[target]


def _cell(
    point: dict[str, Any],
    variant: Variant | None,
    from_recipe: Mapping[str, Any],
    seed: int,
    protocols: Sequence[str],
    preset: str,
    overrides: Sequence[str],
) -> Cell:
    fields = {**from_recipe, **(variant.set if variant else {}), **point}
    target = fields.pop("target", "norm_pixel")
    # `hog.num_bins=6` is a setting of the rows of that target alone
    other_targets = set(recipe.names("targets")) - {target}
    overrides = [text for text in overrides if text.partition(".")[0] not in other_targets]
    grid: dict[str, Any] = {"seed": seed, "evaluate.protocols": list(protocols)}
    relative: dict[str, float] = {}
    base = resolve(target, preset, overrides).config
    for field, value in fields.items():
        grid[field] = value
        if isinstance(value, str) and (match := _RELATIVE.fullmatch(value)):
            base_value = flatten(base.model_dump())[config_field(field, base)]
            relative[field] = float(match[1])
            scaled = base_value * relative[field]
            grid[field] = max(1, round(scaled)) if isinstance(base_value, int) else scaled
    # a setting is what a relative value is relative to; over another one it would make all rows the same
    overridden = {config_field(split_override(text)[0], base): text for text in overrides}
    for field in grid:
        text = overridden.get(config_field(field, base))
        if text and field not in ("seed", "evaluate.protocols", *relative):
            raise UserError(
                f"{text}: the benchmark's rows differ in {field}; take a benchmark file of your own"
            )
    scaled_fields = {config_field(field, base) for field in relative}
    kept = [text for field, text in overridden.items() if field not in scaled_fields]
    config = resolve(target, preset, kept, grid).config
    resolved = {"variant": variant.name} if variant else {}
    resolved |= {field: grid.get(field, value) for field, value in point.items()}
    return Cell(config, resolved, relative, variant, tuple(from_recipe))
