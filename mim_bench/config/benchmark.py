"""A benchmark: the cells of one comparison table or figure, written in one TOML file.

The grid is the science, the preset is the scale. A grid's value may be relative to the preset's own:
`"x0.5"` of `pretrain.epochs` is half its length. What a preset must change is said in `[at.<preset>]`.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from mim_bench.config import recipe
from mim_bench.config.protocol import ProtocolName
from mim_bench.config.resolve import explain
from mim_bench.errors import UserError, suggest
from mim_bench.schema import Frozen

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
    """Label of the axis with its unit."""
    log: bool = False
    """Logarithmic."""


class Published(Frozen):
    """Published rows next to the measured ones, and the measured row that each belongs to."""

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
    first_only: tuple[ProtocolName, ...] | None = None


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
    division: Literal["closed", "tuned", "as_published", "published"] = "closed"
    """`closed`: two rows differ in nothing but what the grid names, which is checked; `tuned`: and in what an equal
    budget of trials chose for each target (`tuning`, `tuned`); `as_published`: and in what each recipe's own
    `[as_published]` sets; `published`: no runs, published rows only."""
    tuning: str | None = None
    """Benchmark whose trials chose what `tuned` says; its rows are the budget."""
    tuned: dict[str, dict[str, dict[str, Any]]] = {}
    """Preset -> target -> field -> value, as `mim_bench tune` prints them."""
    seeds: tuple[int, ...] = ()
    """Declared beforehand; all are reported."""
    protocols: tuple[ProtocolName, ...] = ()
    """Run in every cell, as in `evaluate.protocols`."""
    first_only: tuple[ProtocolName, ...] = ()
    """Run in the first cell of each seed alone: what does not depend on the grid, such as `scratch`. What depends on
    the target, such as `baselines`, runs in the first cell of each target."""
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
        if (self.division == "tuned") != (self.tuning is not None):
            raise ValueError("division='tuned' and tuning='BENCHMARK' need each other")
        targets = [str(target) for target in self.grid.get("target", ())]
        for preset, of_target in self.tuned.items():
            if unknown := sorted(set(of_target) - set(targets)):
                raise ValueError(
                    f"tuned.{preset}: no row has target '{unknown[0]}'; {suggest(unknown[0], targets)}"
                )
        return self

    def has_runs_at(self, preset: str) -> bool:
        """False where only published numbers are shown, or nothing is tuned at the preset yet."""
        is_tuned = self.division != "tuned" or Path(preset).stem in self.tuned
        return self.division != "published" and is_tuned


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
        "first_only": benchmark.first_only if scale.first_only is None else scale.first_only,
        "grid": benchmark.grid | scale.grid,
    }
    return benchmark.model_copy(update=changes)
