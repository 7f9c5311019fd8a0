"""Three divisions: only `as_published` reads what a recipe says of its paper, only `tuned` what trials chose."""

import pytest
from fake import fake_results

from mim_bench.analysis import render, table, tuning
from mim_bench.config import recipe
from mim_bench.config.benchmark import load_benchmark
from mim_bench.config.cells import as_published, cells
from mim_bench.config.resolve import resolve
from mim_bench.errors import UserError

PUBLISHED = [n for n in recipe.names("targets") if recipe.load_recipe(n).as_published]
BASE = """
title = "t"
description = "d"
rebuilds = "r"
claim = "c"
seeds = [0]
protocols = ["linear"]
[grid]
target = ["pixel", "hog"]
"""
TRIALS = """
[[variants]]
name = "slow"
set = { "pretrain.blr" = "x0.5", "data.evaluate_on" = "tune" }
[[variants]]
name = "own"
set = { "data.evaluate_on" = "tune" }
"""


def test_as_published__is_the_papers_recipe_at_the_papers_scale():
    found = {c.config.target.name: c.config for c in cells("methods_as_published", "imagenet")}
    hog, simmim, beit = (found[name] for name in ("hog", "pixel", "dvae"))
    assert hog.pretrain.blr == pytest.approx(2e-4, rel=1e-3)  # per 256 images
    assert hog.pretrain.clip_norm == 0.02 and hog.model.mask_tokens == "encoder_light"
    assert simmim.pretrain.blr * 512 / 256 == pytest.approx(2e-4, rel=1e-3)
    assert simmim.target.params["loss"] == "l1" and simmim.mask.sampling == "square"
    assert beit.pretrain.blr * 2048 / 256 == pytest.approx(1.5e-3, rel=1e-3)
    assert beit.augment.color_jitter == 0.4 and beit.augment.crop_scale == (0.08, 1.0)
    assert found["norm_pixel"].mask.ratio == 0.75 and found["norm_pixel"].pretrain.blr == 1.5e-4


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_published__names_settings_and_changes_no_run_of_the_closed_division(name):
    assert resolve(name, "small").config.mask == resolve("norm_pixel", "small").config.mask


def test_as_published__is_not_overruled_from_the_command_line():
    with pytest.raises(UserError, match=r"mask.ratio=0.3: the benchmark's rows differ"):
        cells("methods_as_published", "small", ["mask.ratio=0.3"])


def test_table__of_published_recipes_says_so_and_no_closed_table_takes_its_records(tmp_path):
    fake_results("methods_as_published", "tiny", tmp_path)
    text = render.markdown(table.build("methods_as_published", "tiny", tmp_path))
    assert "Division as published: each row keeps its paper's mask" in text
    assert "`mask.ratio`" in text and "`model.mask_tokens`" in text
    (tmp_path / "targets" / "tiny").mkdir(parents=True)
    (tmp_path / "methods_as_published/tiny/records").rename(tmp_path / "targets/tiny/records")
    with pytest.raises(UserError, match="is no record of benchmark 'targets'"):
        table.build("targets", "tiny", tmp_path)


@pytest.fixture
def tuned(tmp_path):
    trials, tuned = tmp_path / "trials.toml", tmp_path / "tuned.toml"
    trials.write_text(BASE + TRIALS)
    tuned.write_text(f"division = 'tuned'\ntuning = '{trials}'\n" + BASE)
    return trials, tuned, tmp_path / "results"


def test_tune__takes_the_best_trial_of_each_target_and_validate_holds_the_file_to_it(tuned):
    trials, path, results = tuned
    fake_results(
        str(trials), "tiny", results
    )  # later rows are better: pixel slow, hog slow, ..., hog own
    found = tuning.choices(str(trials), "tiny", results)
    assert {one.target: one.best for one in found} == {"pixel": "own", "hog": "own"}
    assert all(dict(one.settings) == {} for one in found)  # what every trial sets is no choice
    path.write_text(path.read_text() + tuning.as_toml(found, "tiny"))
    tuning.check(str(path), results)
    path.write_text(path.read_text().replace("hog = {}", 'hog = { "pretrain.blr" = "x0.5" }'))
    with pytest.raises(UserError, match=r"tuned.tiny.hog: the file says .* the trials chose"):
        tuning.check(str(path), results)
    blr = {c.config.target.name: c.config.pretrain.blr for c in cells(str(path), "tiny")}
    assert blr["hog"] == 0.5 * blr["pixel"]
    fake_results(str(path), "tiny", results)
    text = render.markdown(table.build(str(path), "tiny", results))
    assert "Division tuned: 2 trials a target on a held-out slice" in text
    assert "pixel: the preset's own; hog: pretrain.blr x0.5" in text


def test_tune__refuses_a_target_with_fewer_trials_and_trials_on_test_images(tuned):
    trials, _, results = tuned
    fake_results(str(trials), "tiny", results)
    next((results / "trials/tiny/records").glob("hog*.json")).unlink()
    with pytest.raises(UserError, match="target 'hog' lacks 1 of 2 trials, such as"):
        tuning.choices(str(trials), "tiny", results)
    trials.write_text((BASE + TRIALS).replace('"tune"', '"test"'))
    for path in (results / "trials/tiny/records").iterdir():
        path.unlink()
    fake_results(str(trials), "tiny", results)
    with pytest.raises(UserError, match="a trial evaluated on the test split"):
        tuning.choices(str(trials), "tiny", results)


def test_tuned__without_a_choice_says_what_to_do(tuned):
    _, path, _ = tuned
    with pytest.raises(
        UserError, match="nothing is chosen for target 'pixel'; sweep .*trials.toml"
    ):
        cells(str(path), "tiny")
    assert not load_benchmark("targets_tuned").has_runs_at("imagenet")
    bad = path.with_name("bad.toml")
    bad.write_text("division = 'tuned'\n" + BASE)
    with pytest.raises(UserError, match="division='tuned' and tuning='BENCHMARK' need each other"):
        load_benchmark(str(bad))


def test_as_published__names_recipe_and_block_where_it_is_wrong(tmp_path):
    path = tmp_path / "mine.toml"
    for setting, said in (
        ('"mask.ratioo" = 0.4', "unknown field 'mask.ratioo'"),
        ('"mask.ratio" = 4', "mask.ratio=4"),
    ):
        path.write_text(
            'class = "mim_bench.targets.pixel:PixelTarget"\ndescription = "d"\npaper = "p"\n'
            f"[as_published]\n{setting}\n"
        )
        with pytest.raises(UserError, match=rf"mine.toml', \[as_published\]: {said}"):
            as_published(str(path), "tiny")


def test_tuned__refuses_a_target_that_no_row_has(tuned):
    _, path, _ = tuned
    path.write_text(path.read_text() + "[tuned.tiny]\nhgo = {}\n")
    with pytest.raises(UserError, match="tuned.tiny: no row has target 'hgo'; nearest: hog"):
        load_benchmark(str(path))
