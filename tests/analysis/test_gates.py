"""What fails a gate is named and ranked nowhere; what passes is ranked."""

import pytest
from fake import fake_results

from mim_bench.analysis import gates, render, table
from mim_bench.config.recipe import names
from mim_bench.records import swept

FIVE = ["benchmark.seeds=0,1,2,3,4"]


def built(results, preset="small", **options):
    swept.remember("decoder_depth", preset, results, FIVE)
    fake_results("decoder_depth", preset, results, spread=0.6, overrides=FIVE, **options)
    made = table.build("decoder_depth", preset, results)
    return made, [row.label for row in made.rows if row.values["linear"].is_best]


def test_table__with_an_encoder_above_pixels_and_pca_ranks(tmp_path):
    made, best = built(tmp_path)
    assert made.below_gate is None and best == ["decoder depth 4"]
    assert "elow the gate" not in render.markdown(made)


def test_table__whose_encoders_are_all_below_pixels_ranks_nothing(tmp_path):
    made, best = built(tmp_path, baseline=0.95)
    assert best == [] and "no encoder is above PCA, 96 components and raw pixels" in made.below_gate
    for text in (render.markdown(made), render.brief_markdown(made)):
        assert "Below the gate: no encoder is above" in text


def test_table__of_a_tier_without_primary_measure_is_plumbing(tmp_path):
    made, best = built(tmp_path, preset="tiny")
    assert best == [] and "plumbing, not a finding" in render.markdown(made)


def test_table__without_baselines_ranks_nothing(tmp_path):
    built(tmp_path)
    for path in tmp_path.rglob("*__baselines.*"):
        path.unlink()
    made = table.build("decoder_depth", "small", tmp_path)
    assert "no linear of raw pixels and PCA" in (made.below_gate or "")
    assert not any(row.values["linear"].is_best for row in made.rows)


@pytest.mark.parametrize(("model", "is_below"), [(0.4, False), (0.6, True)])
def test_row__whose_loss_is_not_below_ridge_is_marked_and_not_ranked(tmp_path, model, is_below):
    losses = {"mean_loss": 1.0, "ridge_loss": 0.5, "model_loss": model, "model_r2": 1 - model}
    made, best = built(tmp_path, gate=losses)
    text = render.markdown(made)
    assert ("| decoder depth 4 (below the gate" in text) == is_below
    assert ("decoder depth 4 (loss 0.600, ridge 0.500)" in text) == is_below
    assert ("decoder depth 4" in best) != is_below
    assert f"decoder depth 4 {1 - model:.3f}" in text  # R2 is shown either way


def test_every_accuracy_table__has_its_baselines():
    from mim_bench.config.benchmark import load_benchmark

    for name in names("benchmarks"):
        declared = load_benchmark(name)
        if {"linear", "knn", "finetune"} & set(declared.protocols) and name not in (
            "learning_rate",
            "tuning",
        ):
            assert "baselines" in {*declared.protocols, *declared.first_only}, name


def test_primary_measure__is_declared_by_every_tier_of_findings():
    declared = {name: gates.primary_measure(name) for name in names("preset")}
    assert declared == {
        "tiny": None, "small": "linear", "cifar10": "linear", "imagenet": "finetune",
    }  # fmt: skip
