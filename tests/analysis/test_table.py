"""Tables: the means of the records, intervals, differences, published numbers beside, refusals."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
from fake import fake_results
from scipy import stats

from mim_bench.analysis import render, table, write
from mim_bench.analysis.column import Column, is_compared
from mim_bench.analysis.row import total_tflops
from mim_bench.config import recipe
from mim_bench.config.benchmark import load_benchmark
from mim_bench.errors import UserError
from mim_bench.records import store

WITH_RUNS = [n for n in recipe.names("benchmarks") if load_benchmark(n).has_runs_at("tiny")]
TABLES = [*WITH_RUNS, "methods", "controlled"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    home = tmp_path_factory.mktemp("results")
    for name in WITH_RUNS:
        fake_results(name, "tiny", home)
    return home


@pytest.mark.parametrize("name", TABLES)
def test_table__of_every_benchmark_is_made_as_markdown_csv_and_tex(results, name):
    made = table.build(name, "tiny", results)
    grid = render.main_grid(made) if made.rows else render.published_grid(made)
    lines = grid.texts
    assert lines and all(len(line) == len(grid.headings) for line in lines)
    assert render.markdown(made).count("\n| ") > len(lines)
    assert len(list(csv.DictReader(io.StringIO(write.csv(made))))) == len(made.rows) + len(
        made.published_only
    )
    assert write.tex(made).count(r"\\") == len(lines) + 1


def test_value__is_the_mean_over_seeds_with_students_interval(results):
    made = table.build("targets", "tiny", results)
    frame = store.results("targets", folder=results)
    for row in made.rows[:4]:
        values = frame[(frame["target"] == row.label)]["linear"].dropna()
        assert row.values["linear"].mean == pytest.approx(values.mean())
    made = table.build("mask_ratio", "tiny", results)
    for row in made.rows[:4]:
        values = np.array(list(row.values["linear"].of_seed.values()))
        half = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))[1] - values.mean()
        assert row.values["linear"].half == pytest.approx(half)
    assert table.half_interval([0.7]) is None
    assert table.half_interval([0.70, 0.72, 0.74]) == pytest.approx(0.0497, abs=1e-4)


def test_cell__is_per_cent_with_its_interval():
    column = Column("linear", "linear %", True)
    assert render.value_cell(table.Value({0: 0.70, 1: 0.72, 2: 0.74}), column).text == "72.0 ± 5.0"
    assert render.value_cell(table.Value({0: 0.7}), column).text == "70.0"
    assert render.value_cell(None, column).text == "-"


def test_heading_of_few_labels__has_one_sign_for_each_thing(results):
    made = table.build("targets", "tiny", results)
    wanted = ["low-shot (1 % of labels) %", "low-shot (10 % of labels) %"]
    headings = render.main_grid(made).headings
    assert [heading for heading in headings if "low-shot" in heading] == wanted
    assert not any(re.search(r"%\s*%", column.heading) for column in made.columns)
    assert {"fine-tune %", "kNN @ last/cls %"} <= {column.heading for column in made.columns}
    assert r"low-shot (1 \% of labels) \%" in write.tex(made)
    frame = list(csv.DictReader(io.StringIO(write.csv(made))))
    assert {"low_shot 1%", "low_shot 10%"} <= frame[0].keys()


def test_csv__holds_the_same_numbers_unrounded(results):
    made = table.build("mask_ratio", "tiny", results)
    lines = list(csv.DictReader(io.StringIO(write.csv(made))))
    for row, line in zip(made.rows, lines, strict=False):
        if row.is_baseline:
            assert line["finetune"] == "" and float(line["linear"]) == row.values["linear"].mean
            continue
        assert float(line["finetune"]) == row.values["finetune"].mean
        if row.label != made.reference:
            assert float(line["finetune low"]) == row.differences["finetune"].low


def test_difference_that_contains_zero__is_indistinguishable_and_ranks_nothing(tmp_path):
    fake_results("decoder_depth", "tiny", tmp_path, spread=0.0)
    made = table.build("decoder_depth", "tiny", tmp_path)
    text = render.markdown(made)
    assert "indistinguishable" in text and "**" not in text.split("- Preset")[0].split("claim")[-1]
    assert not any(value.is_best for row in made.rows for value in row.values.values())


def test_control__stands_below_the_rows_where_it_is_one(tmp_path):
    fake_results("targets", "tiny", tmp_path)
    folder = tmp_path / "targets/tiny/records"
    for path in folder.glob("*__linear.json"):
        content = json.loads(path.read_text())
        for metric in content["control"]:
            metric["value"] = 0.5 + 0.01 * content["seed"]
        path.write_text(json.dumps(content | {"sha256": None}))
    made = table.build("targets", "tiny", tmp_path)
    assert made.rows[-1].label == table.CONTROL
    assert made.rows[-1].values["linear"].of_seed == {0: 0.5, 1: 0.51}
    assert "finetune" not in made.rows[-1].values
    of_control = made.rows[-1].differences["linear"]
    means = [made.row(label).values["linear"].mean for label in (table.CONTROL, made.reference)]
    assert of_control.mean == pytest.approx(means[0] - means[1])
    raw = made.row("raw pixels")
    assert raw.differences["linear"].num_seeds == 2 and "low_shot" not in raw.differences


def test_published__stands_beside_with_its_source_and_why_it_is_not_comparable(results):
    made = table.build("targets", "tiny", results)
    row = made.row("norm_pixel")
    assert [p.value for p in row.published["linear"]] == [73.9]
    assert 85.4 in [p.value for p in row.published["finetune"]]
    assert "data" in row.reasons and "ImageNet-1K" in row.reasons["data"]
    text = render.markdown(made)
    assert "73.9 [1]" in text and "[1] MAE, Table 1d" in text and "Not comparable because" in text
    alone = [p.target for p in made.published_only]
    assert "PCA" in alone and "pixel (w/ norm)" not in alone


def test_published_status__is_shown_unless_confirmed(results):
    text = render.markdown(table.build("mask_ratio", "tiny", results))
    assert "83.2 (inferred)" in text and "54.6 [" in text


def test_scaled_grid__pairs_with_the_published_row_of_the_same_multiple(results):
    made = table.build("schedule", "tiny", results)
    shown = {
        row.label: [p.pretrain_epochs for p in row.published["linear"]]
        for row in made.rows
        if row.published
    }
    assert list(shown.values()) == [[200], [400], [800], [1600]]


def test_partial_fine_tuning__has_the_paper_beside_by_blocks(results):
    row = table.build("partial_finetune", "tiny", results).row("pixel")
    values = {key: [p.value for p in found] for key, found in row.published.items()}
    assert values == {"linear": [73.5], "partial 0.5": [79.1], "partial 1": [81.0],
                      "partial 2": [83.1], "finetune": [84.9]}  # fmt: skip


def test_scratch__is_a_row_that_the_others_are_compared_with(results):
    made = table.build("scratch_vs_pretrained", "tiny", results)
    assert made.reference == "scratch" and made.rows[0].label == "scratch"
    assert all("finetune" in row.differences for row in made.rows[1:] if not row.is_baseline)
    first, pixel = made.rows[:2]
    at_equal_flops = made.row("scratch at equal FLOPs")
    assert "finetune" in at_equal_flops.differences and not at_equal_flops.published
    assert first.values["total_tflops"].mean == at_equal_flops.values["total_tflops"].mean == 5
    assert "epochs_to_scratch" in pixel.values and "epochs_to_scratch" not in first.values


def test_costs__are_ratios_to_the_reference_row(results):
    made = table.build("wall_time", "tiny", results)
    slow, fast = made.rows[0], made.row("1-block decoder, norm_pixel")
    assert slow.values["speed_up"].mean == pytest.approx(1)
    assert fast.values["speed_up"].mean == pytest.approx(9 / 2)  # tests/fake.py: 1 + depth
    assert fast.values["flops_ratio"].mean == pytest.approx(2 / 9)
    hours = 10 * 10_000 / (1000 / 2) / 3600
    assert fast.values["hours"].mean == pytest.approx(hours)
    assert [p.value for p in fast.published["speed_up"]] == [3.7]


def test_compute__is_that_of_training_and_fit_and_unknown_where_the_fit_is(tmp_path):
    fake_results("targets", "tiny", tmp_path, seeds=(0,))
    made = table.build("targets", "tiny", tmp_path)
    assert made.row("hog").values["total_tflops"].mean == 2
    assert made.row("dvae").values["total_tflops"].mean == 3
    assert "TFLOPs, all" in render.main_grid(made, brief=True).headings
    for entry in made.entries:
        if entry.record.target == "dvae" and entry.record.pretrain:
            entry.record.pretrain.fit.pop("fit_flops")
    assert total_tflops([entry for entry in made.entries if entry.record.target == "dvae"]) == {}


def test_missing_cells__are_counted(results, tmp_path):
    shutil.copytree(results / "decoder_depth", tmp_path / "decoder_depth")
    gone = sorted((tmp_path / "decoder_depth/tiny/records").glob("*-s2-*__finetune.json"))[0]
    gone.unlink()
    made = table.build("decoder_depth", "tiny", tmp_path)
    assert sum(row.num_missing for row in made.rows) == 1
    assert "(1 missing)" in render.markdown(
        made
    ) and "Cells failed or not run: 1." in render.markdown(made)


def test_notes__prove_that_nothing_else_differs(results):
    text = render.markdown(table.build("mask_ratio", "tiny", results))
    assert "Rows differ in `mask.ratio`, `target` (class_path, name" in text
    assert "cccccccccccc" in text and "residual pooled" in text


def test_stale_row__says_so(results, monkeypatch):
    from mim_bench.config.target_params import HogParams

    monkeypatch.setattr(HogParams, "version", 99)
    made = table.build("targets", "tiny", results)
    assert made.row("hog").stale == ("target",) and made.row("pixel").stale == ()
    assert "| hog (stale) |" in render.markdown(made)


def changed(results, tmp_path, change, pattern="*.json"):
    shutil.copytree(results / "targets", tmp_path / "targets")
    path = sorted((tmp_path / "targets/tiny/records").glob(pattern))[0]
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content | {"sha256": None}))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["config"]["linear"].update(epochs=7), r"rows differ in linear\.epochs"),
        (lambda c: c["code"].update(commit="none"), "names no commit"),
        (lambda c: c["device"].update(kind="cuda"), "device kinds"),
        (lambda c: c["data"].update(fingerprint="e" * 64), "data sets"),
        (lambda c: c.update(precision="bfloat16"), "precisions"),
        (lambda c: c["pretrain"].update(first_batches="d" * 64), "other images or masks"),
        (lambda c: c["config"]["runtime"].update(tf32=True), "kinds of matrix product"),
        (lambda c: c.update(versions={}), "names no versions"),
        (lambda c: c["device"].update(name=""), "names no device"),
        (lambda c: c["data"].update(fingerprint=""), "names no data fingerprint"),
        (lambda c: c["data"].update(class_names=None), "names no class names"),
        (lambda c: c.update(seconds=0.0), "names no wall time"),
        (lambda c: c["pretrain"].update(images_seen=0), "names no number of images seen"),
        (lambda c: c["pretrain"].update(seconds=0.0), "names no wall time of its pre-training"),
        (lambda c: c["pretrain"].update(first_batches=""), "names no hash of its first batches"),
    ],
)
def test_table__refuses_what_proves_nothing(results, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        table.build("targets", "tiny", changed(results, tmp_path, change, "*__linear.json"))


def test_settings_of_a_protocol__are_compared_among_its_own_records(results, tmp_path):
    """A row that is fine-tuned later, under other settings of `finetune`, has the same linear probe as before."""

    def change(content):
        content["config"]["finetune"].update(epochs=7)

    table.build("targets", "tiny", changed(results, tmp_path / "a", change, "*__linear.json"))
    with pytest.raises(UserError, match=r"rows differ in finetune\.epochs"):
        table.build("targets", "tiny", changed(results, tmp_path / "b", change, "*__finetune.json"))


def test_record_without_flops__makes_its_row_stale(results, tmp_path):
    def change(content):
        content["pretrain"].update(flops=None)

    made = table.build("targets", "tiny", changed(results, tmp_path, change, "*__linear.json"))
    assert [row.stale for row in made.rows].count(("record without FLOPs",)) == 1


def test_every_accuracy__is_compared_and_the_least_detectable_difference_printed(results):
    made = table.build("targets", "tiny", results)
    compared = {column.key for column in made.columns if is_compared(column.key)}
    assert {"linear", "knn", "low_shot 1%", "low_shot 10%", "finetune"} <= compared
    assert is_compared("attentive") and is_compared("partial 0.5")
    assert "Least true difference found four times in five" in render.markdown(made)


def test_table_goes_into_a_page__between_its_marks(results, tmp_path):
    made = table.build("targets", "tiny", results)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table targets tiny -->\nold\n<!-- end -->\nafter\n")
    write.insert(page, made)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n")
    assert render.brief_markdown(made) in text and "\nold\n" not in text
    page.write_text("<!-- table targets small -->\nold\n<!-- end -->\n")
    with pytest.raises(
        UserError, match="has no marks <!-- table targets tiny .* nearest: .* targets small -->"
    ):
        write.insert(page, made)
    page.write_text("no marks")
    with pytest.raises(UserError, match="no marks"):
        write.insert(page, made)


def test_answers__are_those_of_the_rows_own_protocol(results):
    """`finetune` of the scratch row is the record of protocol `scratch`."""
    found = store.benchmark_records("scratch_vs_pretrained", "tiny", results)
    made = table.build("scratch_vs_pretrained", "tiny", results)
    scratch = {
        o.record.seed: o.correct(["model"])["model"]
        for o in found
        if o.record.protocol == "scratch"
    }
    tuned = {o.record.seed: o.correct(["model"])["model"] for o in found
             if o.record.protocol == "finetune" and o.record.target == "hog"}  # fmt: skip
    mean = np.mean([tuned[s].mean() - scratch[s].mean() for s in scratch])
    assert made.row("hog").differences["finetune"].mean == pytest.approx(mean)


def test_provenance__names_a_dirty_training_and_every_version(results, tmp_path):
    def change(content):
        content["versions"]["torch"] = "2.6.0"
        if content["pretrain"]:
            content["pretrain"]["code"] = {"commit": "f" * 40, "dirty": True}

    made = table.build("targets", "tiny", changed(results, tmp_path, change, "hog*__linear.json"))
    (line,) = re.findall("- Commit .*", render.markdown(made))
    assert "ffffffffffff (dirty)" in line and re.search(
        r"torch 2\.6\.0 and \d|torch \S+ and 2\.6\.0", line
    )
