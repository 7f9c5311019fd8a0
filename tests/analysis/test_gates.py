"""What fails a gate is named and ranked nowhere; what passes is ranked."""

import re

import pytest
from fake import fake_results, five_seeds

from mim_bench.analysis import gates, headline, render, table
from mim_bench.analysis.report.page import write_report
from mim_bench.config.recipe import names
from mim_bench.records import swept


def table_of(name, preset, results, **options):
    """The table of fake records of a benchmark that declares five seeds."""
    file = five_seeds(name, results)
    swept.remember(file, preset, results, ())
    fake_results(file, preset, results, **options)
    return table.build(f"five_{name}", preset, results)


def built(results, preset="small", **options):
    made = table_of("decoder_depth", preset, results, spread=0.6, **options)
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


def test_best_encoder__that_a_baseline_may_equal_is_not_bold(tmp_path):
    """Above raw pixels by less than is detectable: it is not shown to be better than every other row."""
    table_ = table_of("decoder_depth", "small", tmp_path, spread=0.1, baseline=0.075)
    means = {row.label: row.values["linear"].mean for row in table_.rows}
    assert means["decoder depth 4"] - 0.03 < means["raw pixels"] < means["decoder depth 4"]
    assert table_.below_gate is None
    assert not any(row.values["linear"].is_best for row in table_.rows)


def test_table__of_a_tier_without_primary_measure_is_plumbing(tmp_path):
    made, best = built(tmp_path, preset="tiny")
    assert best == [] and "plumbing, not a finding" in render.markdown(made)


def test_table__without_baselines_ranks_nothing(tmp_path):
    built(tmp_path)
    for path in tmp_path.rglob("*__baselines.*"):
        path.unlink()
    made = table.build("five_decoder_depth", "small", tmp_path)
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
    assert f"decoder depth 4: {1 - model:.3f}" in text  # R2 is shown either way


def test_row__has_to_be_below_the_mean_where_ridge_is_worse(tmp_path):
    """Ridge from a few thousand views may be above the position-wise mean of a target that pixels hardly predict."""
    built_table, best = built(
        tmp_path, gate={"mean_loss": 0.55, "ridge_loss": 0.7, "model_loss": 0.6}
    )
    assert built_table.row("decoder depth 4").below_gate == "loss 0.600, mean 0.550"
    assert "decoder depth 4" not in best


def test_row__without_a_ridge_loss_does_not_count(tmp_path):
    made, best = built(tmp_path, gate={"mean_loss": 1.0, "model_loss": 0.1})
    row = made.row("decoder depth 4")
    assert row.below_gate == "no ridge regression to compare with" and row.label not in best


def test_row__is_below_the_gate_if_one_seed_is(tmp_path):
    failed = {"mean_loss": 1.0, "ridge_loss": 0.5, "model_loss": 0.6}
    made, best = built(tmp_path, gate=failed, gate_seeds=[3])
    assert made.row("decoder depth 4").below_gate == "loss 0.600, ridge 0.500"
    assert "decoder depth 4" not in best


def test_table__whose_only_encoder_above_pixels_did_not_train_ranks_nothing(tmp_path):
    """Depths 1, 2 and 4 reach 63, 67 and 72 %, raw pixels 69 %; depth 4 has a loss above ridge's."""
    failed = {"mean_loss": 1.0, "ridge_loss": 0.5, "model_loss": 0.6}
    made = table_of("decoder_depth", "small", tmp_path, spread=0.08, baseline=0.03, gate=failed)
    means = {row.label: row.values["linear"].mean for row in made.rows}
    assert means["decoder depth 2"] < means["raw pixels"] < means["decoder depth 4"]
    assert "no encoder is above" in (made.below_gate or "")
    assert not any(row.values["linear"].is_best for row in made.rows)


def test_table__has_to_be_above_both_baselines(tmp_path):
    """Raw pixels 75 %, PCA 73 %, the best encoder 74 %."""
    made = table_of("decoder_depth", "small", tmp_path, spread=0.1, baseline=0.09)
    assert (made.below_gate or "").startswith("no encoder is above raw pixels on linear")


def test_tier__whose_primary_measure_no_baseline_has_is_judged_by_the_linear_probe(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(gates, "primary_measure", lambda preset: "finetune")
    for baseline, is_above in ((-0.3, True), (0.95, False)):
        results = tmp_path / str(baseline)
        made = table_of("targets", "cifar10", results, baseline=baseline)
        assert any(column.key == "finetune" for column in made.columns)
        assert (made.below_gate is None) == is_above
        assert is_above or "on linear" in (made.below_gate or "")


def test_words_below_the_gate__stand_in_headline_figures_and_the_verdict_of_a_run(tmp_path):
    failed = {"mean_loss": 1.0, "ridge_loss": 0.5, "model_loss": 0.6}
    made = table_of("targets", "small", tmp_path, spread=0.3, gate=failed)
    said = headline.sentence(made)
    assert "dvae (below the gate)" in said and "pixel (below" not in said
    assert "dvae: below the gate" in gates.remark(made.entries)
    records = [one.record for one in made.entries if one.record.target == "dvae"][:6]
    assert "0.600" in gates.verdict(records) and "below the gate" in gates.verdict(records)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "dvae (below the gate)" in page


def test_every_accuracy_table__has_its_baselines():
    from mim_bench.config.benchmark import load_benchmark

    for name in names("benchmarks"):
        declared = load_benchmark(name)
        if {"linear", "knn", "finetune"} & set(declared.protocols) and name not in (
            "learning_rate",
            "tuning",
        ):
            assert "baselines" in {*declared.protocols, *declared.first_only}, name
    assert {"scratch", "scratch_flops"} <= set(load_benchmark("targets").first_only)


def test_primary_measure__is_declared_by_every_tier_of_findings():
    declared = {name: gates.primary_measure(name) for name in names("preset")}
    assert declared == {
        "tiny": None, "small": "linear", "cifar10": "linear", "imagenet": "finetune",
    }  # fmt: skip


def test_measure_without_a_fixed_feature_and_unequal_compute__are_said(tmp_path):
    """Rules 11 and 13: what a column or a table lacks is printed under it."""
    fake_results("targets", "small", tmp_path)
    text = render.markdown(table.build("targets", "small", tmp_path))
    (line,) = re.findall(r"No raw pixels, PCA or target as a feature under (.+)\.\n", text)
    assert "attentive" in line and "linear" not in line and "kNN" not in line
    assert re.search(r"Rows took [\d,]+ to [\d,]+ TFLOPs; at equal compute", text)
