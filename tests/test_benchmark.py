"""Benchmarks: every file in `benchmarks/` is valid; sweeps continue; tables come from records alone."""

import json
import shutil

import pytest
from conftest import SMALL

from mim_bench import benchmark, recipe, table
from mim_bench.error import UserError

TWO = ("description = 'd'\nrebuilds = 'r'\nseeds = [0, 1]\nprotocols = ['knn']\n"
       "[grid]\ntarget = ['pixel', 'hog']\n")  # fmt: skip


@pytest.mark.parametrize("name", recipe.names("benchmarks"))
@pytest.mark.parametrize("preset", recipe.names("preset"))
def test_benchmark_file__gives_distinct_runs_at_every_scale(name, preset):
    found = benchmark.cells(name, preset)
    declared = benchmark.load_benchmark(name)
    assert len({cell.config.hash for cell in found}) == len(found)
    assert {cell.config.seed for cell in found} == set(declared.seeds)
    assert set(declared.grid.get("target", ())) <= set(recipe.names("targets"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    home = tmp_path_factory.mktemp("sweep")
    (home / "two.toml").write_text(TWO)
    told: list[str] = []

    def sweep():
        return benchmark.sweep(
            str(home / "two.toml"), "tiny", out=home / "runs", results=home / "results",
            overrides=SMALL, told=told.append, command="test",
        )  # fmt: skip

    assert sweep() == []
    return home, sweep, told


def test_sweep__continues_with_what_is_missing(swept):
    home, sweep, told = swept
    name = str(home / "two.toml")
    assert len(benchmark.read_records(name, "tiny", home / "results")) == 4
    gone = next((home / "runs").glob("hog-tiny-s1-*"))
    shutil.rmtree(gone)
    told.clear()
    sweep()
    assert ["was done" in line for line in told] == [True, True, True, False]


def test_failing_cell__does_not_stop_the_others(swept, monkeypatch):
    home, sweep, told = swept
    shutil.rmtree(home / "runs")
    from mim_bench.targets.pixel import PixelTarget

    monkeypatch.setattr(PixelTarget, "forward", lambda self, images: 1 / 0)
    told.clear()
    failed = sweep()
    assert [cell.config.target.name for cell in failed] == ["pixel", "pixel"]
    assert sum(": done:" in line for line in told) == 2
    logs = list((home / "runs" / "failed").glob("pixel-*.log"))
    assert len(logs) == 2 and "ZeroDivisionError" in logs[0].read_text()


def test_table__holds_the_means_of_the_records(swept):
    home, _, _ = swept
    name = str(home / "two.toml")
    frame = benchmark.results(name, "tiny", folder=home / "results")
    assert len(frame) == 4 and frame["top1"].between(0, 1).all()
    text = table.markdown(name, "tiny", home / "results")
    for target in ("pixel", "hog"):
        values = frame[frame["target"] == target]["top1"]
        assert f"| {target} | {table.interval(values.tolist())} |" in text
    assert (
        "random weights (control)" in text and "Rows differ in `target` (class_path, name, " in text
    )


def test_interval__is_students_over_seeds():
    assert table.interval([0.7, 0.72, 0.74]) == "72.0 ± 5.0"
    assert table.interval([0.7]) == "70.0"
    assert table.interval([]) == "-"


def damaged(home, tmp_path, change):
    shutil.copytree(home / "results", tmp_path / "results", dirs_exist_ok=True)
    path = sorted((tmp_path / "results").rglob("*.json"))[0]
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return tmp_path / "results"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["config"]["mask"].update(ratio=0.25), r"rows differ in mask\.ratio"),
        (lambda c: c["code"].update(commit="none"), "names no commit"),
        (lambda c: c["device"].update(kind="cuda"), "device kinds"),
        (lambda c: c.update(schema_version="x"), "no record of schema"),
    ],
)
def test_table__refuses_what_proves_nothing(swept, tmp_path, change, message):
    home, _, _ = swept
    results = damaged(home, tmp_path, change)
    with pytest.raises(UserError, match=message):
        table.markdown(str(home / "two.toml"), "tiny", results)


def test_table_goes_into_a_page__between_its_marks(swept, tmp_path):
    home, _, _ = swept
    name = str(home / "two.toml")
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- table {name} tiny -->\nold\n<!-- end -->\nafter\n")
    table.insert(page, name, "tiny", home / "results")
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n")
    assert table.markdown(name, "tiny", home / "results") in text and "old" not in text
    page.write_text("no marks")
    with pytest.raises(UserError, match="no marks"):
        table.insert(page, name, "tiny", home / "results")


def test_unknown_benchmark__names_the_nearest():
    with pytest.raises(UserError, match="nearest: targets"):
        benchmark.cells("target", "tiny")
