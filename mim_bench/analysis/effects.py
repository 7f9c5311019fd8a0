"""Do targets matter: how much of the spread in accuracy comes from target, mask ratio, readout and seed.

Balanced analysis of variance over the records of `targets` and `mask_ratio`, one value a cell. The share of
a factor is its sum of squares over the total (eta squared). A factor without any effect has a share too: what
chance gives is its interaction with the seed over S - 1, and the F test compares the two (the seed is the
random factor; readouts of one run are no repeats of each other, which a test against the rest would assume).

Legend: N cells, K levels of a factor, S seeds.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mim_bench.analysis.grid import MISSING, Grid, TableCell
from mim_bench.config.benchmark import cells
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.errors import UserError
from mim_bench.records import comparability, store
from mim_bench.records.store import CellRecord

BENCHMARKS = ("targets", "mask_ratio")
REST = "interactions and noise"
METHOD = (
    "Share: sum of squares of a main effect over the total (eta squared); points: standard deviation of the "
    "means of its levels; by chance: the share that a factor without effect would have, from its interaction "
    "with the seed; p: F test of the one against the other. Only seeds with every cell are used."
)
_LEVEL = 0.05


@dataclass(frozen=True)
class Effect:
    """Effect of one factor, or of the rest, on one measure of one benchmark."""

    benchmark: str
    preset: str
    measure: str
    """As a heading says it: `fine-tune`, `linear`, `kNN`."""
    factor: str
    """`target`, `mask ratio`, `readout`, `seed`, or `REST`."""
    share: float
    """Part of the total sum of squares, in [0, 1]; the shares of a measure add up to 1."""
    points: float
    """Standard deviation (over K) of the means of the levels, in points of accuracy: sqrt(SS / N)."""
    by_chance: float | None = None
    """Share expected without any effect; None for the seed, the rest, and where there is one seed."""
    p: float | None = None
    """p value of the F test against the interaction with the seed."""
    num_levels: int | None = None
    """None for the rest."""
    num_cells: int = 0
    """N."""
    num_seeds: int = 0
    """Seeds with every cell; others are left out."""
    is_stale: bool = False
    """Whether a record is no longer what the command would make."""

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the F test rejects at 5 %; False where it cannot be made."""
        return self.p is not None and self.p < _LEVEL


def analyse(results: Path, preset: str, names: Sequence[str] = BENCHMARKS) -> list[Effect]:
    """Effects by benchmark and measure, the factors in the order of the grid, the rest last."""
    effects = []
    for name in names:
        if not any((store.home(name, preset, results) / "records").glob("*.json")):
            continue
        found = store.benchmark_records(name, preset, results)
        comparability.check(found)
        for spec in PROTOCOLS.values():
            if spec.is_compared and not spec.column:
                effects += _effects(name, preset, spec.name, found)
    if not effects:
        raise UserError(
            f"no seed of {' or '.join(names)} at preset '{preset}' has every cell; "
            f"`sweep {names[0]} --preset {preset}` runs what is missing"
        )
    return effects


def _effects(name: str, preset: str, protocol: str, found: Sequence[CellRecord]) -> list[Effect]:
    found = [one for one in found if one.record.protocol == protocol]
    values, factors = _balanced(name, preset, found)
    sizes = list(values.shape)
    if values.size == 0 or sum(size > 1 for size in sizes) < 2:
        return []  # of one factor alone everything is its effect
    kept = [axis for axis, size in enumerate(sizes) if size > 1 or factors[axis] == "seed"]
    values = values.reshape([sizes[axis] for axis in kept])
    num_seeds = sizes[-1]
    factors = [factors[axis] for axis in kept]
    squares = sums_of_squares(values, factors)
    total = sum(squares.values())
    effects = []
    for factor, square in squares.items():
        axis = factors.index(factor) if factor != REST else None
        if factor == "seed" and num_seeds < 2:
            continue
        chance = p = None
        if axis is not None and factor != "seed" and num_seeds > 1 and total:
            expected, p = against_seed(values, axis)
            chance = expected / total
        effects.append(
            Effect(
                name, preset, PROTOCOLS[protocol].title, factor,
                share=square / total if total else 0.0,
                points=100 * float(np.sqrt(square / values.size)),
                by_chance=chance, p=p, num_levels=None if axis is None else sizes[kept[axis]],
                num_cells=values.size, num_seeds=num_seeds,
                is_stale=any(one.stale for one in found),
            )
        )  # fmt: skip
    return effects


def _balanced(name: str, preset: str, found: Sequence[CellRecord]) -> tuple[np.ndarray, list[str]]:
    """Accuracies of one protocol over grid, readouts and the seeds that have all of these -> their factors."""
    todo = cells(name, preset)
    fields = list(todo[0].point)
    value: dict[tuple[Any, ...], float] = {}
    for one in found:
        for metric in one.record.metrics:
            place = (one.cell.point[field] for field in fields)
            value[(*place, metric.readout, one.record.seed)] = metric.value
    levels = [list(dict.fromkeys(cell.point[field] for cell in todo)) for field in fields]
    levels.append(list(dict.fromkeys(key[-2] for key in value)))
    inner = list(itertools.product(*levels))
    seeds = dict.fromkeys(cell.config.seed for cell in todo)
    complete = [seed for seed in seeds if inner and all((*key, seed) in value for key in inner)]
    shape = [len(several) for several in levels] + [len(complete)]
    table = np.array([value[*key, seed] for key in inner for seed in complete]).reshape(shape)
    return table, [*(field.replace(".", " ") for field in fields), "readout", "seed"]


def sums_of_squares(values: np.ndarray, factors: Sequence[str]) -> dict[str, float]:
    """(K, ..., S), one value a cell -> main effect of each axis, and `REST`; they add up to the total."""
    centred = values - values.mean()
    found = {}
    for axis, factor in enumerate(factors):
        others = tuple(other for other in range(values.ndim) if other != axis)
        found[factor] = values.size * float(np.mean(centred.mean(axis=others) ** 2))
    rest = float((centred**2).sum()) - sum(found.values())
    return found | {REST: max(0.0, rest)}


def against_seed(values: np.ndarray, axis: int) -> tuple[float, float | None]:
    """(K, ..., S) -> sum of squares that chance would give the factor of an axis, and p of its F test.

    The factor has K - 1 degrees of freedom and its interaction with the seed (K - 1)(S - 1), so that F is
    the one sum of squares over the other's (S - 1)th part.
    """
    others = tuple(other for other in range(values.ndim - 1) if other != axis)
    table = values.mean(axis=others)  # (K, S)
    num_levels, num_seeds = table.shape
    repeats = values.size / table.size
    means = table.mean(axis=1, keepdims=True) - table.mean()
    residual = table - table.mean(axis=0) - means
    effect = repeats * num_seeds * float((means**2).sum())
    expected = repeats * float((residual**2).sum()) / (num_seeds - 1)
    if expected == 0:
        return 0.0, 0.0 if effect else None
    degrees = num_levels - 1
    return expected, float(stats.f.sf(effect / expected, degrees, degrees * (num_seeds - 1)))


def grid(effects: Sequence[Effect]) -> Grid:
    """The shares as a table, one row per effect."""
    headings = ["spread of", "comes from", "share %", "by chance %", "p", "points", "levels",
                "cells", "seeds"]  # fmt: skip

    def number(value: float | None, decimals: int) -> TableCell:
        return MISSING if value is None else TableCell(f"{value:.{decimals}f}", value)

    rows = []
    for effect in effects:
        name = f"{effect.benchmark}, {effect.measure}" + (" (stale)" if effect.is_stale else "")
        chance = None if effect.by_chance is None else 100 * effect.by_chance
        is_tiny = effect.p is not None and effect.p < 0.001
        p = TableCell("<0.001", effect.p) if is_tiny else number(effect.p, 3)
        rows.append([TableCell(name), TableCell(effect.factor), number(100 * effect.share, 1),
                     number(chance, 1), p, number(effect.points, 2), number(effect.num_levels, 0),
                     number(effect.num_cells, 0), number(effect.num_seeds, 0)])  # fmt: skip
    return Grid(headings, rows)


# ---- in words ----


def sentence(effects: Sequence[Effect]) -> str:
    """Whether targets matter, in one sentence with its numbers; kNN is left to the table."""
    groups: dict[tuple[str, str], list[Effect]] = {}
    for one in effects:
        groups.setdefault((one.benchmark, one.measure), []).append(one)
    in_words = [group for (_, measure), group in groups.items() if measure != "kNN"]
    in_words = in_words or list(groups.values())
    verdicts = set(map(_verdict, in_words))
    whole = verdicts.pop()[0] if len(verdicts) == 1 else None
    clauses = [
        _clause(group, is_first=group is in_words[0], is_alike=bool(whole)) for group in in_words
    ]
    stale = " (from stale records)" if any(one.is_stale for one in effects) else ""
    return (
        f"At preset {effects[0].preset} {whole or 'how much the target matters depends on the comparison'}: "
        f"it explains {_and(clauses)}{stale}."
    )


def _verdict(group: Sequence[Effect]) -> tuple[str, str]:
    """Whether the target matters, and in a word or two."""
    target, leader = _target(group), _leader(group)
    if target.p is None:
        return "with one seed the target cannot be told from chance", "one seed"
    if not target.is_beyond_chance:
        return "the target cannot be told from chance", "not beyond chance"
    if leader is target:
        return "the target matters more than any other factor", "the most"
    return f"the target matters, but less than the {leader.factor}", f"behind the {leader.factor}"


def _clause(group: Sequence[Effect], *, is_first: bool, is_alike: bool) -> str:
    """`41 % of the spread of linear accuracy (1.2 points, the most; readout 38 %, seed 3 %)`."""
    target = _target(group)
    others = [one for one in group if one.factor not in ("target", REST)]
    varied = [f"{one.factor}s" for one in others if one.factor not in ("readout", "seed")]
    over = f" over {_and(varied)}" if varied else ""
    numbers = [f"{one.factor} {_percent(one.share)}" for one in others]
    if target.by_chance is not None and not target.is_beyond_chance:
        numbers.insert(0, f"chance alone {_percent(target.by_chance)}")
    what = f"the spread of {target.measure} accuracy" if is_first else target.measure
    verdict = "" if is_alike else f", {_verdict(group)[1]}"
    details = "; ".join([f"{target.points:.1f} points{verdict}", ", ".join(numbers)])
    return f"{_percent(target.share)} of {what}{over} ({details})"


def _target(group: Sequence[Effect]) -> Effect:
    return next(one for one in group if one.factor == "target")


def _leader(group: Sequence[Effect]) -> Effect:
    """The largest of the factors, the rest aside."""
    return max((one for one in group if one.factor != REST), key=lambda one: one.share)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
