"""Which row a table calls the best, and when it calls none."""

import json
import re

import pytest
from fake import fake_results, five_seeds

from mim_bench.analysis import render, table
from mim_bench.records import swept

DEPTHS = "five_decoder_depth"


def ranked(results, change=None, pattern="*.json"):
    """The table of five seeds whose last row is best, after a change of its records' files; and the best rows."""
    file = five_seeds("decoder_depth", results)
    swept.remember(file, "small", results, ())
    fake_results(file, "small", results, spread=0.6)
    for path in (results / DEPTHS / "small/records").glob(pattern):
        content = json.loads(path.read_text())
        if change is not None and "depth 4" in label_of(content):
            change(content)
            path.write_text(json.dumps(content | {"sha256": None}))
    made = table.build(DEPTHS, "small", results)
    return made, [row.label for row in made.rows if row.values["linear"].is_best]


def label_of(content):
    return f"decoder depth {content['config']['model']['decoder_depth']}"


def test_table_of_five_seeds__ranks(tmp_path):
    made, best = ranked(tmp_path)
    assert best == ["decoder depth 4"] and "**Bold**" in render.markdown(made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["data"].update(limited=True), "Exploratory, on limited data: no row"),
        (lambda c: c["data"].update(split="tune"), "on a slice of the training images: no row"),
    ],
)
def test_table__ranks_on_the_full_test_split_alone(tmp_path, change, said):
    made, best = ranked(tmp_path, change)
    assert best == [] and said in render.markdown(made)
    assert "**Bold**" not in render.markdown(made)


def test_table__with_fewer_seeds_of_one_row_is_exploratory(tmp_path):
    ranked(tmp_path)
    for path in (tmp_path / DEPTHS / "small/records").glob("*.json"):
        content = json.loads(path.read_text())
        if content["seed"] > 1 and "depth 2" in label_of(content):
            path.unlink()
    made = table.build(DEPTHS, "small", tmp_path)
    assert not any(value.is_best for row in made.rows for value in row.values.values())
    assert (
        "Exploratory, with 2 to 5 seeds a row where a ranking needs 5: no row is called the best."
        in render.markdown(made)
    )


def test_table__with_a_seed_that_nobody_declared_is_exploratory(tmp_path):
    file, six = five_seeds("decoder_depth", tmp_path), ["benchmark.seeds=0,1,2,3,4,5"]
    swept.remember(file, "small", tmp_path, six)
    fake_results(file, "small", tmp_path, spread=0.6, overrides=six)
    text = render.markdown(table.build(DEPTHS, "small", tmp_path))
    assert "Exploratory, with seeds that the benchmark does not declare (5): no row" in text
    assert "**Bold**" not in text


def test_table__with_a_declared_row_without_records_is_exploratory(tmp_path):
    ranked(tmp_path)
    for path in (tmp_path / DEPTHS / "small/records").glob("*.json"):
        if "depth 2" in label_of(json.loads(path.read_text())):
            path.unlink()
    text = render.markdown(table.build(DEPTHS, "small", tmp_path))
    assert "Exploratory, with 0 to 5 seeds a row" in text and "**Bold**" not in text


def test_stale_row__is_not_ranked(tmp_path):
    made, best = ranked(tmp_path, lambda c: c.update(protocol_version=1), "*__linear.json")
    assert made.row("decoder depth 4").stale == ("protocol linear",) and best != ["decoder depth 4"]


def test_best_row__is_marked_only_if_it_differs_from_every_other(tmp_path):
    fake_results("decoder_depth", "small", tmp_path, spread=0.6)
    three = table.build("decoder_depth", "small", tmp_path)  # as many as it declares
    assert not any(row.values["linear"].is_best for row in three.rows)
    assert "Exploratory, with 3 seeds a row" in render.markdown(three)
    made, best = ranked(tmp_path)
    assert best == ["decoder depth 4"] and "Exploratory" not in render.markdown(made)
    assert re.search(r"\*\*\d+\.\d ± \d+\.\d\*\*", render.markdown(made))


def test_target_as_a_feature__has_the_seeds_of_its_fit_and_a_fixed_function_none(tmp_path):
    file = five_seeds("targets", tmp_path)
    swept.remember(file, "small", tmp_path, ())
    fake_results(file, "small", tmp_path, spread=0.6)
    made = table.build("five_targets", "small", tmp_path)
    fitted = made.row("dvae as a feature")
    assert len(set(fitted.values["linear"].of_seed.values())) > 1 and fitted.num_seeds == 5
    for fixed in (made.row("norm_pixel as a feature"), made.row("raw pixels")):
        assert fixed.num_seeds == 1 and fixed.differences["linear"].num_seeds == 5
    for path in (tmp_path / "five_targets/small/records").glob("*__baselines.json"):
        if json.loads(path.read_text())["seed"]:
            path.unlink()
    made = table.build("five_targets", "small", tmp_path)
    alone = made.row("dvae as a feature").differences["linear"]
    assert alone.num_seeds == 1 and not alone.is_distinguishable
    assert made.row("norm_pixel as a feature").differences["linear"].num_seeds == 5
