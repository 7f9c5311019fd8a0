"""The README tells the truth: its commands exist, its table is what the records give, its links lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import speed_table  # pyright: ignore[reportMissingImports]

from mim_bench.analysis import render, table
from mim_bench.cli.main import app
from mim_bench.cluster.settings import load_cluster
from mim_bench.config import recipe
from mim_bench.config.resolve import load_config, resolve, split_override
from mim_bench.data.sources import open_source
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


FILES = {
    found[1]: text for _, text in BLOCKS if (found := re.match(r"# ([a-z_]+\.(?:py|toml))", text))
}
"""Files that the README shows, by the name in their first line."""


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
        assert given["benchmark"] in [*recipe.names("benchmarks"), *every, *FILES]


@pytest.mark.parametrize(("name", "preset"), re.findall(r"<!-- table (\w+) (\w+) -->", README))
def test_table__is_what_the_records_give(name, preset):
    block = re.search(rf"<!-- table {name} {preset} -->\n(.*?)<!-- end -->", README, re.DOTALL)
    made = table.build(name, preset, ROOT / "results")
    assert block is not None and block[1] == render.brief_markdown(made)


@pytest.mark.parametrize("name", recipe.names("benchmarks"))
def test_benchmark_list__is_what_the_files_say(name):
    assert f"| `{name}` | {recipe.read('benchmarks', name)['rebuilds']} |" in README


def test_first_screen__has_a_table_and_its_picture():
    assert "<!-- table targets small -->" in README[:600]
    assert README.index("pictures.png") < README.index("## Use")


def test_gpu_figures__are_what_the_gpu_printed():
    rows = [line for line in README.split("### On one GPU")[1].splitlines() if " ms |" in line]
    printed = (ROOT / "results" / "device" / "nvidia-h200.json").read_text()
    figures = [figure for row in rows for figure in re.findall(r"[\d.,]+(?= ms| images/s)", row)]
    assert len(figures) == 13
    assert [figure for figure in figures if figure not in printed] == []


def test_links_and_pictures__exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_cluster_file__is_one(tmp_path):
    text = next(text for language, text in BLOCKS if language == "toml" and "partition" in text)
    (tmp_path / "cluster.toml").write_text(text)
    cluster, _ = load_cluster(tmp_path / "cluster.toml", ["cluster.nodes=2"])
    assert (cluster.ranks, cluster.evaluation.ranks) == (16, 1)


@pytest.fixture
def user(tmp_path, monkeypatch):
    """An empty folder with the README's files, as the current one."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_own_benchmark_and_preset__run_as_the_readme_shows(user):
    trial = [shlex.split(command)[3:] for command in COMMANDS if "--results trial" in command]
    for arguments in trial:
        app(arguments, standalone_mode=False)
    assert [arguments[0] for arguments in trial] == ["sweep", "table"]
    table_text = (user / "trial/my_masks/my_preset/table.md").read_text()
    assert all(
        f"| {name}, ratio {ratio}" in table_text
        for name in ("pixel", "hog")
        for ratio in (0.5, 0.75)
    )
    config = load_config("hog", "my_preset.toml")
    assert (config.target.params["num_bins"], config.model.depth) == (12, 2)


def test_python_block__runs_as_printed_in_any_folder(user):
    block = next(text for _, text in BLOCKS if text.startswith("import mim_bench"))
    names = {}
    exec(block, names)
    assert {record.protocol for record in names["records"]} == {"knn", "linear"}
    assert len(names["encoder"].blocks) == names["config"].model.depth
    assert names["hog"].dim == 9 * 2 * 2 * 3


@pytest.mark.parametrize("layout", ["split", "train alone", "classes", "flat"])
def test_folder_layout__is_taken_as_the_readme_says(layout, tmp_path):
    folders = {
        "split": ["train/a", "train/b", "val/a", "val/b"],
        "train alone": ["train/a", "train/b"],
        "classes": ["a", "b"],
        "flat": ["."],
    }[layout]
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for number in range(20):
            np.save(tmp_path / folder / f"{number}.npy", np.full((8, 8), number, np.uint8))
    source = open_source(f"folder:{tmp_path}")
    assert len(source.train) == {"split": 40, "flat": 18}.get(layout, 36)
    assert (source.train.labels is None) == (layout == "flat")


def test_added_target__works_as_the_readme_shows(user):
    found = recipe.load_recipe("mean_colour.toml")
    assert target_class(found.class_path).__name__ == "MeanColour"
    import torch

    from mim_bench.targets.build import build_target

    target = build_target("mean_colour.toml", image_size=8, patch_size=4)
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


def test_speed_table__is_that_of_the_committed_measurements():
    measured = json.loads((ROOT / "results" / "speed" / "amd-epyc-2-cores.json").read_text())
    assert f"<!-- speed -->\n{speed_table.table(measured)}\n<!-- end -->" in README
