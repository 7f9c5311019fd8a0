"""The verbs on targets: show, check-target, diagnose."""

from pathlib import Path
from typing import Annotated

import typer

from mim_bench.cli.cluster import Results
from mim_bench.cli.options import (
    WORDS,
    Data,
    Out,
    Preset,
    print_line,
    print_table,
    settings,
)

app = typer.Typer()

Named = Annotated[str, typer.Argument(help="Recipe name, or path of one ending in .toml.")]


@app.command()
def show(target: Named, preset: Preset = "tiny") -> None:
    """A target: its definition, paper, values, parameters, its paper's own recipe, published numbers."""
    from mim_bench.analysis.published.about import numbers
    from mim_bench.config.cells import as_published
    from mim_bench.config.recipe import load_recipe
    from mim_bench.config.resolve import load_config, target_schema
    from mim_bench.experiment.about import definition, shape

    recipe, config = load_recipe(target), load_config(target, preset)
    published = as_published(target, preset)
    print_line(f"{Path(target).stem}: {recipe.description}", style="bold")
    print_line(definition(recipe.class_path))
    print_line("")
    methods = [["methods", ", ".join(recipe.methods)]] if recipe.methods else []
    print_table(
        ["", "value"],
        [["paper", recipe.paper], *methods, ["class", f"{recipe.class_path}, version {config.target.version}"],
         [f"at {preset}", shape(config)]],
    )  # fmt: skip
    schema, _ = target_schema(recipe.class_path)
    params = [
        [name, str(config.target.params[name]), " ".join((field.description or "").split())]
        for name, field in schema.model_fields.items()
    ]
    if params:
        print_table(["parameter", f"at {preset}", "meaning"], params)
    if published:
        print_table(
            ["as published", "value"], [[key, str(value)] for key, value in published.items()]
        )
    if rows := numbers(Path(target).stem):
        print_table(["published", "setting", "value", "where"], rows)


@app.command("check-target")
def check_target(target: Named, preset: Preset = "tiny", data: Data = None) -> None:
    """Take a target of anybody's through its contract on a few images; exit code 2 with what fails."""
    from mim_bench.config.resolve import load_config
    from mim_bench.errors import UserError
    from mim_bench.experiment.check_target import check

    config = load_config(target, preset, settings(None, None, data))
    failed = 0
    for line in check(config):
        print_line(
            f"{'ok  ' if line.fault is None else 'FAIL'}  {line.what}"
            + (f": {line.fault}" if line.fault else "")
        )
        failed += line.fault is not None
    if failed:
        raise UserError(
            f"target '{target}' breaks its contract in {failed} point{'s' * (failed > 1)}"
        )
    print_line("holds to its contract")


@app.command(context_settings=WORDS)
def diagnose(
    words: Annotated[
        list[str] | None, typer.Argument(help="Targets, by default all; SECTION.FIELD=VALUE.")
    ] = None,
    preset: Preset = "tiny",
    data: Data = None,
    out: Out = Path("runs"),
    results: Results = Path("results"),
) -> None:
    """Measure targets before any training: dimension, predictability, accuracy as a feature, cost."""
    import pandas as pd

    from mim_bench.analysis.figures.diagnose import draw_diagnoses
    from mim_bench.analysis.report.diagnoses import LEGEND, diagnoses_grid
    from mim_bench.config import recipe
    from mim_bench.experiment.diagnose import diagnose, write_diagnosis

    names = [word for word in words or [] if "=" not in word] or recipe.names("targets")
    overrides = settings([word for word in words or [] if "=" in word], None, data)
    diagnoses, paths = [], list[Path]()
    for diagnosis in diagnose(names, preset, overrides, out=out, notify=print_line):
        diagnoses.append(diagnosis)
        paths = [write_diagnosis(diagnosis, preset, results)]
    if paths:
        paths += draw_diagnoses(paths[0], preset, results)
        grid = diagnoses_grid(pd.DataFrame(diagnoses))
        print_table(grid.headings, grid.texts)
        print_line(LEGEND, style="dim")
        print_line("wrote " + ", ".join(map(str, paths)))
