"""Benchmark files: each valid at every scale, distinct cells, relative values, published rows that exist."""

import pytest

from mim_bench.analysis.published.rows import rows
from mim_bench.config import benchmark, cells, recipe
from mim_bench.errors import UserError

NAMES = recipe.names("benchmarks")
ISSUE = {
    "targets", "mask_ratio", "mask_sampling", "mask_token", "decoder_depth", "decoder_width", "augmentation",
    "schedule", "partial_finetune", "scratch_vs_pretrained", "hog_normalisation", "pixel_loss", "wall_time",
    "methods",
}  # fmt: skip


def test_every_comparison_of_the_plan__has_a_file():
    assert set(NAMES) >= ISSUE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", recipe.names("preset"))
def test_benchmark_file__gives_distinct_runs_at_every_scale(name, preset):
    declared = benchmark.at_preset(benchmark.load_benchmark(name), preset)
    if not declared.has_runs_at(preset):
        assert declared.tuning or rows(declared.published.tables)
        return
    found = cells.cells(name, preset)
    assert len({cell.config.hash for cell in found}) == len(found)
    assert {cell.config.seed for cell in found} == set(declared.seeds)
    assert set(declared.grid.get("target", ())) <= set(recipe.names("targets"))
    # chooses a setting and ranks nothing; plumbing
    if name in ("learning_rate", "tuning") or preset == "tiny":
        return
    assert len(declared.seeds) >= (3 if name in ("targets", "mask_ratio", "decoder_depth",
                                                 "partial_finetune", "scratch_vs_pretrained") else 2)  # fmt: skip
    labels = {cell.label for cell in found} | set(declared.first_only)
    assert declared.reference is None or declared.reference in labels


@pytest.mark.parametrize("name", NAMES)
def test_cells_of_a_benchmark__differ_only_in_what_the_file_names(name):
    if not benchmark.load_benchmark(name).has_runs_at("tiny"):
        return
    found = [cell for cell in cells.cells(name, "tiny") if cell.config.seed == 0]
    from mim_bench.records.run_folder import difference

    for cell in found[1:]:
        allowed = cell.varies() | found[0].varies()
        fields = difference(found[0].config, cell.config)
        outside = [f for f in fields if f not in allowed and not f.startswith("target.")]
        assert outside == []
        if not cell.varies_target():
            assert {f for f in fields if f.startswith("target.")} <= allowed


def test_setting__is_what_relative_values_are_relative_to():
    found = cells.cells("schedule", "imagenet", ["pretrain.epochs=400", "finetune.epochs=7"])
    assert sorted({cell.config.pretrain.epochs for cell in found}) == [100, 200, 400, 800]
    assert {cell.config.finetune.epochs for cell in found} == {7}


def test_setting_of_what_the_rows_differ_in__is_refused():
    with pytest.raises(
        UserError, match=r"mask\.ratio=0\.6: the benchmark's rows differ in mask\.ratio"
    ):
        cells.cells("mask_ratio", "tiny", ["mask.ratio=0.6"])
    with pytest.raises(UserError, match="rows differ in hog.num_bins"):
        cells.cells("hog_normalisation", "tiny", ["hog.num_bins=3"])


def test_relative_value__is_a_multiple_of_the_presets():
    found = cells.cells("schedule", "imagenet")
    assert sorted({cell.point["pretrain.epochs"] for cell in found}) == [200, 400, 800, 1600]
    assert {cell.relative["pretrain.epochs"] for cell in found} == {0.25, 0.5, 1.0, 2.0}
    assert all(cell.config.pretrain.epochs == cell.point["pretrain.epochs"] for cell in found)


def test_preset__changes_seeds_and_grid_only_where_the_file_says_so():
    tiny = cells.cells("mask_ratio", "tiny")
    assert {cell.point["mask.ratio"] for cell in tiny} == {0.1, 0.5, 0.75, 0.85}
    large = cells.cells("mask_ratio", "imagenet")
    assert len({cell.point["mask.ratio"] for cell in large}) == 10
    assert {cell.config.seed for cell in cells.cells("mask_sampling", "tiny")} == {0, 1}


def test_first_only__runs_in_the_first_cell_of_each_seed():
    found = cells.cells("scratch_vs_pretrained", "tiny")
    with_scratch = [cell for cell in found if "scratch" in cell.config.evaluate.protocols]
    assert [cell.config.seed for cell in with_scratch] == [0, 1, 2]


def test_first_only__what_depends_on_the_target_runs_once_a_target():
    """So that every target of the table is there as a fixed feature too (rule 11)."""
    found = cells.cells("mask_ratio", "small", ["benchmark.seeds=0,1"])
    first = [cell for cell in found if "baselines" in cell.config.evaluate.protocols]
    assert [(cell.config.target.name, cell.config.seed) for cell in first] == [
        ("norm_pixel", 0), ("hog", 0), ("norm_pixel", 1), ("hog", 1)
    ]  # fmt: skip
    assert {cell.point["mask.ratio"] for cell in first} == {0.25}


def test_shared_runs__have_one_hash_in_every_benchmark():
    """A sweep must not train `hog` again for each table that shows it."""
    targets = {cell.config.hash for cell in cells.cells("targets", "cifar10")}
    for name in ("partial_finetune", "scratch_vs_pretrained"):
        assert {cell.config.hash for cell in cells.cells(name, "cifar10")} == targets
    half = [c for c in cells.cells("mask_ratio", "cifar10") if c.point["mask.ratio"] == 0.75]
    assert {cell.config.hash for cell in half} <= targets


BROKEN = {
    "seeds = []": "seeds, protocols and a grid",
    "division = 'published'": "needs \\[published\\]",
    "sedes = [0]": "sedes",
    "protocols = ['lineer']": "lineer",
    "[at.tiny]\ngrid = { 'mask.ratoi' = [0.5] }": "nearest: mask.ratio",
    "grid = { 'mask.ratoi' = [0.5] }": "nearest: mask.ratio",
    "grid = { target = ['hogg'] }": "nearest: hog",
    "reference = 'nothing'": "no row 'nothing'",
}  # fmt: skip
GOOD = {
    "title": "'t'", "description": "'d'", "rebuilds": "'r'", "claim": "'c'", "seeds": "[0]",
    "protocols": "['knn']", "grid": "{ target = ['pixel'], 'mask.ratio' = [0.25, 0.5] }",
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BROKEN.items())
def test_broken_benchmark__is_refused_with_the_field(tmp_path, line, message):
    from fake import fake_results

    from mim_bench.analysis import table

    key = line.partition(" ")[0]
    kept = [f"{name} = {value}" for name, value in GOOD.items() if name != key]
    path = tmp_path / "mine.toml"
    path.write_text("\n".join([*kept, line]) + "\n")
    with pytest.raises(UserError, match=message):
        cells.cells(str(path), "tiny")
        fake_results(str(path), "tiny", tmp_path)
        table.build(str(path), "tiny", tmp_path)


def test_unknown_benchmark__names_the_nearest():
    with pytest.raises(UserError, match="nearest: targets"):
        cells.cells("target", "tiny")
