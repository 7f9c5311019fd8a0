"""A benchmark: the cells of one comparison table or figure, written in one TOML file.

The grid is the science, the preset is the scale. A grid's value may be relative to the preset's own:
`"x0.5"` of `pretrain.epochs` is half its length. What a preset must change is said in `[at.<preset>]`.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from mim_bench.config import recipe
from mim_bench.config.protocol import ProtocolName
from mim_bench.config.resolve import explain, flatten, resolve, split_override
from mim_bench.config.run import RunConfig
from mim_bench.errors import UserError, suggest
from mim_bench.schema import Frozen

_RELATIVE = re.compile(r"x(\d*\.?\d+)")


CostName = Literal["step_ms", "target_share", "peak_gb", "flops_ratio", "speed_up", "hours"]
"""Time of a step; the target's own part of it; memory; FLOPs of a step over the reference row's; the
reference row's time over this row's; the preset's whole pre-training at this speed."""


class Variant(Frozen):
    """Fields that change together, as one row of a table."""

    name: str
    """Label of the row."""
    set: dict[str, Any] = {}
    """Field -> value, relative ones too."""
    published: dict[str, str | float] = {}
    """Column of the published rows -> value, which finds the row's counterpart; of `variant` the
    beginning is enough."""


class Axis(Frozen):
    """The figure of a benchmark whose rows lie along a quantity."""

    x: str
    """A field of the grid, or `blocks`: trained blocks, from `linear` (0) over `partial` to `finetune`."""
    label: str
    """With its unit."""
    log: bool = False
    """Logarithmic."""


class Published(Frozen):
    """Which published rows are shown next to the measured ones, and which of them belongs to which measured row."""

    tables: tuple[str, ...] = Field(min_length=1)
    """`table_id` of the published rows."""
    columns: dict[str, str] = {}
    """Field of the grid -> column of the published rows that says the same."""
    values: dict[str, dict[str, str]] = {}
    """Field of the grid -> our value -> theirs, where they are not written alike."""
    reference: dict[str, float] = {}
    """Column -> its value at relative 1, for grids that are scaled to the preset."""
    where: dict[str, str | float] = {}
    """Column -> value: rows of the tables with another value are left out."""
    shared: dict[str, dict[str, str | float]] = {}
    """Protocol of `first_only` -> column -> value, which finds that row's counterparts."""


class Scale(Frozen):
    """Changes that one preset makes to a benchmark."""

    seeds: tuple[int, ...] | None = None
    grid: dict[str, tuple[Any, ...]] = {}
    protocols: tuple[ProtocolName, ...] | None = None


class Benchmark(Frozen):
    """The content of a file in `benchmarks/`."""

    title: str
    """Heading of its table, figure and place in the report."""
    description: str
    """One line for `list benchmarks`."""
    rebuilds: str
    """Tables and figures of the literature."""
    claim: str
    """Claim that the measured version may make."""
    division: Literal["closed", "published"] = "closed"
    """`closed`: two rows differ in nothing but what the grid names, which is checked; `published`: no
    runs, published rows only."""
    seeds: tuple[int, ...] = ()
    """Declared beforehand; all are reported."""
    protocols: tuple[ProtocolName, ...] = ()
    """Run in every cell, as in `evaluate.protocols`."""
    first_only: tuple[ProtocolName, ...] = ()
    """Run in the first cell of each seed alone: what does not depend on the grid, such as `scratch`."""
    cost: tuple[CostName, ...] = ()
    """Columns made from the protocol `speed`; ratios are to the reference row."""
    grid: dict[str, tuple[Any, ...]] = {}
    """Field -> its values; `target` names recipes. Cells are the product of all."""
    variants: tuple[Variant, ...] = ()
    """Rows of fields that change together; multiplied with the grid."""
    reference: str | None = None
    """Label of the row that others are compared with; by default the first."""
    figure: Axis | None = None
    published: Published | None = None
    at: dict[str, Scale] = {}
    """Preset -> what it changes."""

    @model_validator(mode="after")
    def _complete(self) -> "Benchmark":
        if self.division == "published":
            if self.published is None or self.grid or self.variants or self.protocols:
                raise ValueError("division='published' needs [published], and no grid or protocols")
        elif not (self.seeds and self.protocols and (self.grid or self.variants)):
            raise ValueError("seeds, protocols and a grid or variants are needed")
        return self


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark."""

    config: RunConfig
    point: dict[str, Any]
    """Field of the grid -> value, relative ones worked out; `variant` -> its name."""
    relative: dict[str, float]
    """Field of the grid -> value over the preset's own, where the file says it so."""
    variant: Variant | None = None

    @property
    def label(self) -> str:
        """Name of its row: the values that the grid varies."""
        return row_label(self.point)

    def varies(self) -> set[str]:
        """Fields of the resolved config that the grid or variant sets, the target's name aside."""
        return {config_field(name, self.config) for name in self._set() - {"variant", "target"}}

    def varies_target(self) -> bool:
        """Whether the grid or variant sets the target."""
        return "target" in self._set()

    def _set(self) -> set[str]:
        return set(self.point) | set(self.variant.set if self.variant else ())


def row_label(point: Mapping[str, Any]) -> str:
    """`hog, ratio 0.75`: the values of a point of the grid, each behind the last part of its field's name."""
    parts = []
    for field, value in point.items():
        short = field.rpartition(".")[2].replace("_", " ")
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        parts.append(shown if field in ("target", "variant") else f"{short} {shown}")
    return ", ".join(parts)


def config_field(name: str, config: RunConfig) -> str:
    """`hog.num_bins` -> `target.params.num_bins`, where hog is the target; others stay."""
    section, _, rest = name.partition(".")
    return f"target.params.{rest}" if section in (config.target.name, "target") and rest else name


def load_benchmark(name: str) -> Benchmark:
    """A benchmark by name or path."""
    try:
        return Benchmark.model_validate(recipe.read("benchmarks", name))
    except ValidationError as error:
        raise UserError(f"benchmark '{name}': {explain(error)}") from None


def at_preset(benchmark: Benchmark, preset: str) -> Benchmark:
    """The benchmark with the changes of a preset made."""
    scale = benchmark.at.get(preset)
    if scale is None:
        return benchmark
    if unknown := set(scale.grid) - set(benchmark.grid):
        raise UserError(
            f"at.{preset}.grid: unknown field {sorted(unknown)[0]!r}; "
            f"{suggest(sorted(unknown)[0], benchmark.grid)}"
        )
    changes = {
        "seeds": benchmark.seeds if scale.seeds is None else scale.seeds,
        "protocols": benchmark.protocols if scale.protocols is None else scale.protocols,
        "grid": benchmark.grid | scale.grid,
    }
    return benchmark.model_copy(update=changes)


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
    found = []
    grid_points = itertools.product(benchmark.variants or [None], *benchmark.grid.values())
    for number, (variant, *values) in enumerate(grid_points):
        point = dict(zip(benchmark.grid, values, strict=True))
        protocols = benchmark.protocols + (benchmark.first_only if number == 0 else ())
        found.append(_cell(point, variant, seeds[0], protocols, preset, overrides))
    labels = [cell.label for cell in found] + list(benchmark.first_only)
    if benchmark.reference and benchmark.reference not in labels:
        raise UserError(
            f"reference: no row '{benchmark.reference}'; {suggest(benchmark.reference, labels)}"
        )
    # the seeds differ in nothing else
    return [
        replace(cell, config=cell.config.model_copy(update={"seed": seed}))
        for seed in seeds
        for cell in found
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


def _cell(
    point: dict[str, Any],
    variant: Variant | None,
    seed: int,
    protocols: Sequence[str],
    preset: str,
    overrides: Sequence[str],
) -> Cell:
    fields = {**(variant.set if variant else {}), **point}
    target = fields.pop("target", "norm_pixel")
    # `hog.num_bins=6` is a setting of the rows of that target alone
    foreign = set(recipe.names("targets")) - {target}
    overrides = [text for text in overrides if text.partition(".")[0] not in foreign]
    grid: dict[str, Any] = {"seed": seed, "evaluate.protocols": list(protocols)}
    relative: dict[str, float] = {}
    base = resolve(target, preset, overrides).config
    for field, value in fields.items():
        grid[field] = value
        if isinstance(value, str) and (found := _RELATIVE.fullmatch(value)):
            own = flatten(base.model_dump())[config_field(field, base)]
            relative[field] = float(found[1])
            scaled = own * relative[field]
            grid[field] = max(1, round(scaled)) if isinstance(own, int) else scaled
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
    return Cell(config, resolved, relative, variant)
