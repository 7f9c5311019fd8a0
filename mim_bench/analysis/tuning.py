"""Settings that the trials of a tuning budget chose for each target, for the division `tuned`.

Every target has the same trials; each is scored by the preset's primary measure on a slice of the training images, and
the best one's settings are written into a benchmark's `tuned.<preset>`, where they stay until somebody tunes anew.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim_bench.analysis import gates
from mim_bench.config.benchmark import at_preset, load_benchmark
from mim_bench.errors import UserError
from mim_bench.records import store, swept


@dataclass(frozen=True)
class Choice:
    """The trials of one target."""

    target: str
    scores: Mapping[str, float]
    """Trial -> the primary measure on the held-out slice, a fraction; the mean over its seeds."""
    best: str
    """Trial with the highest score; of equal ones the first."""
    settings: Mapping[str, Any]
    """Field -> value of what the best trial sets and trials differ in, as the benchmark file has it."""


def choices(name: str, preset: str, results: Path) -> list[Choice]:
    """The trials of a tuning benchmark, target by target.

    Raises UserError where a trial is missing, so that no target has had fewer, or where one saw the test split.
    """
    sweep = swept.recall(name, preset, results)
    benchmark = at_preset(load_benchmark(sweep.name), sweep.preset)
    measure = gates.primary_measure(preset) or benchmark.protocols[0]
    trials = {variant.name: variant.set for variant in benchmark.variants}
    scores: dict[str, dict[str, list[float]]] = {}
    for entry in store.benchmark_records(sweep.name, sweep.preset, results, sweep.overrides):
        if entry.record.config["data"]["evaluate_on"] != "tune":
            raise UserError(
                f"{entry.path}: a trial evaluated on the test split; set data.evaluate_on = 'tune'"
            )
        if entry.record.protocol == measure and entry.cell.variant:
            value = entry.measures[measure].value
            of_target = scores.setdefault(entry.record.target, {})
            of_target.setdefault(entry.cell.variant.name, []).append(value)
    for target in map(str, benchmark.grid.get("target", ())):
        if missing := [trial for trial in trials if trial not in scores.get(target, {})]:
            raise UserError(
                f"{name} at {preset}: target '{target}' lacks {len(missing)} of {len(trials)} trials, such as "
                f"'{missing[0]}'; sweep it first"
            )
    return [_choice(target, trials, of_target) for target, of_target in scores.items()]


def _choice(
    target: str, trials: Mapping[str, Mapping[str, Any]], scores: Mapping[str, list[float]]
) -> Choice:
    means = {trial: sum(scores[trial]) / len(scores[trial]) for trial in trials}
    best = max(means, key=lambda trial: means[trial])
    shared = [
        field
        for field, value in trials[best].items()
        if all(other.get(field) == value for other in trials.values())
    ]
    settings = {field: value for field, value in trials[best].items() if field not in shared}
    return Choice(target, means, best, settings)


def as_toml(choices: list[Choice], preset: str) -> str:
    """The block of a benchmark file that says what was chosen."""
    lines = [f"[tuned.{Path(preset).stem}]"]
    for choice in choices:
        fields = ", ".join(f'"{field}" = {json.dumps(v)}' for field, v in choice.settings.items())
        lines.append(f"{choice.target} = {{ {fields} }}" if fields else f"{choice.target} = {{}}")
    return "\n".join(lines)


def check(name: str, results: Path) -> None:
    """Raises UserError if a benchmark's `tuned` is not what committed trials chose."""
    benchmark = load_benchmark(name)
    for preset, chosen in benchmark.tuned.items():
        assert benchmark.tuning is not None
        if not (store.home(benchmark.tuning, preset, results) / "records").is_dir():
            raise UserError(f"tuned.{preset}: {benchmark.tuning} has no trials at this preset")
        for choice in choices(benchmark.tuning, preset, results):
            if chosen.get(choice.target) != dict(choice.settings):
                raise UserError(
                    f"tuned.{preset}.{choice.target}: the file says {chosen.get(choice.target)}, the trials chose "
                    f"{dict(choice.settings)} ({choice.best})"
                )
