"""The README tells the truth: its commands exist, its table is what the records give, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from mim_bench.analysis import render, table
from mim_bench.cli.main import app
from mim_bench.cluster.settings import load_cluster
from mim_bench.config import recipe
from mim_bench.config.resolve import load_config, resolve, split_override
from mim_bench.targets.build import target_class

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for _, block in BLOCKS
    for line in block.splitlines()
    if line.startswith(("python -m mim_bench", "make "))
]


def test_readme__has_commands():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_command__parses(command):
    """Verbs, options and settings are those of the command line; nothing is run."""
    import typer

    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    group = typer.main.get_command(app)
    arguments = words[3:]
    name = arguments.pop(0)
    verb = group.commands[name]
    if hasattr(verb, "commands"):
        verb = verb.commands[arguments.pop(0)]
    context = verb.make_context(name, arguments, resilient_parsing=False)
    given = context.params
    settings = given.get("overrides") or []
    assert all(split_override(text) for text in settings)
    target = given.get("target")
    if isinstance(target, str) and not target.endswith(".toml"):
        load_config(target, given.get("preset", "tiny"), settings)
    if "benchmark" in given:
        every = ["all"] if given.get("dry_run") else []
        assert given["benchmark"] in recipe.names("benchmarks") + every


@pytest.mark.parametrize(("name", "preset"), re.findall(r"<!-- table (\w+) (\w+) -->", README))
def test_table__is_what_the_records_give(name, preset):
    block = re.search(rf"<!-- table {name} {preset} -->\n(.*?)<!-- end -->", README, re.DOTALL)
    made = table.build(name, preset, ROOT / "results")
    assert block is not None and block[1] == render.brief_markdown(made)


@pytest.mark.parametrize("name", recipe.names("benchmarks"))
def test_benchmark_list__is_what_the_files_say(name):
    assert f"| `{name}` | {recipe.read('benchmarks', name)['rebuilds']} |" in README


def test_first_screen__has_a_table_and_its_picture():
    assert "<!-- table targets tiny -->" in README[:600]
    assert README.index("pictures.png") < README.index("## Use")


def test_links_and_pictures__exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_cluster_file__is_one(tmp_path):
    text = next(text for language, text in BLOCKS if language == "toml" and "partition" in text)
    (tmp_path / "cluster.toml").write_text(text)
    cluster, _ = load_cluster(tmp_path / "cluster.toml", ["cluster.nodes=2"])
    assert (cluster.ranks, cluster.evaluation.ranks) == (16, 1)


def test_added_target__works_as_the_readme_shows(tmp_path, monkeypatch):
    code = next(text for language, text in BLOCKS if "class MeanColour" in text)
    toml = next(text for language, text in BLOCKS if language == "toml")
    (tmp_path / "their_package.py").write_text(code)
    (tmp_path / "mean_colour.toml").write_text(toml)
    monkeypatch.syspath_prepend(tmp_path)
    found = recipe.load_recipe(str(tmp_path / "mean_colour.toml"))
    assert target_class(found.class_path).__name__ == "MeanColour"
    import torch

    from mim_bench.targets.build import build_target

    target = build_target(str(tmp_path / "mean_colour.toml"), image_size=8, patch_size=4)
    images = torch.rand(2, 3, 8, 8)
    values = target(images)
    torch.testing.assert_close(values[0, 1], images[0, :, :4, 4:].mean((1, 2)))
    assert target.loss(values + 1, values).shape == (2, 4)
    picture = target.picture(values, images)
    torch.testing.assert_close(picture[0, :, 0, 7], values[0, 1])


def test_python_surface__is_what_the_readme_names():
    import mim_bench

    for name in re.findall(r"mim_bench\.(\w+)\(", README):
        assert name in mim_bench.__all__
        assert getattr(mim_bench, name)


def test_settings_reference__is_up_to_date_and_leaves_no_meaning_out():
    import settings_reference

    made = settings_reference.page()
    assert (ROOT / "SETTINGS.md").read_text(encoding="utf-8") == made
    assert not re.findall(r"^.*\|\s+\|$", made, re.MULTILINE)


def test_settings_reference__has_every_field_that_config_show_has():
    made = (ROOT / "SETTINGS.md").read_text(encoding="utf-8")
    for target in recipe.names("targets"):
        for field in resolve(target).origin.keys() - {"preset"}:
            name = field.replace("target.", f"{target}.")
            assert f"| `{name}` |" in made
