"""`dry_run`: what is missing and what it costs, for every benchmark, without data and without writing."""

import io
import itertools

import pytest
from fake import fake_results
from rich.console import Console

from mim_bench import benchmark, cost, recipe
from mim_bench.dry_run import dry_run, forecast
from mim_bench.error import UserError
from mim_bench.sweep import plan

TWO = (
    "title = 't'\ndescription = 'd'\nrebuilds = 'r'\nclaim = 'c'\nseeds = [0, 1]\n"
    "protocols = ['knn', 'linear']\nfirst_only = ['scratch']\n[grid]\ntarget = ['pixel', 'dvae']\n"
)


@pytest.fixture
def two(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(TWO)
    return str(path)


def printed(*arguments, **options):
    text = io.StringIO()
    Console(width=160, file=text).print(dry_run(*arguments, **options))
    return text.getvalue()


def test_missing_runs__cost_what_their_estimates_say(two, tmp_path):
    found = forecast(two, "tiny", results=tmp_path / "results")
    cells = benchmark.cells(two, "tiny")
    single = [cost.estimate(cell.config) for cell in cells]
    assert [(row.label, row.seeds, row.done) for row in found.rows] == [
        ("pixel", (0, 1), ""), ("dvae", (0, 1), ""),
    ]  # fmt: skip
    assert [row.missing for row in found.rows] == ["knn, linear, scratch", "knn, linear"]
    fit = cost.fit_flops(cells[1].config)
    assert found.fits == {"fit dvae": fit}
    assert found.total_flops == pytest.approx(sum(one.total_flops for one in single) + fit)
    assert found.rows[0].pretrain_flops == single[0].pretrain_flops + single[2].pretrain_flops
    assert (found.num_pretrainings, found.num_missing) == (4, 4)
    assert found.num_files == sum(one.num_files for one in single)
    assert found.kept_bytes == sum(one.kept_bytes for one in single)
    most = max(one.storage_bytes - one.kept_bytes for one in single)
    assert found.most_bytes() == found.kept_bytes + most
    assert found.most_bytes(99) == sum(one.storage_bytes for one in single)


def test_jobs__wait_for_fit_and_pretraining(two, tmp_path):
    found = forecast(two, "tiny", results=tmp_path / "results")
    jobs = {job.name: job for job in found.jobs}
    assert list(jobs) == [
        "fit dvae",
        *(f"{what} {target}, seed {seed}" for seed in (0, 1)
          for what in ("pre-train", "evaluate") for target in ("pixel", "dvae")),
    ]  # fmt: skip
    assert jobs["pre-train pixel, seed 1"].needs == ()
    assert jobs["pre-train dvae, seed 1"].needs == ("fit dvae",)
    assert jobs["evaluate dvae, seed 1"].needs == ("pre-train dvae, seed 1",)
    assert sum(job.hours for job in found.jobs) == pytest.approx(found.total_flops / 3600)


def test_records__are_not_asked_for_again_and_not_copied(two, tmp_path):
    (tmp_path / "other.toml").write_text(TWO)
    results = tmp_path / "results"
    fake_results(two, "tiny", results, seeds=(0,))
    fake_results(str(tmp_path / "other.toml"), "tiny", results, seeds=(1,))
    for path in (results / "other").rglob("*__linear.*"):
        path.unlink()
    before = sorted(results.rglob("*"))
    pixel, dvae = forecast(two, "tiny", results=results).rows
    assert (dvae.done, dvae.missing) == ("knn, linear (seed 0)", "linear (seed 1)")
    assert pixel.missing == "linear (seed 1)" and "scratch" in pixel.done
    once = next(c.config for c in benchmark.cells(two, "tiny") if c.label == "dvae")
    assert dvae.pretrain_flops == cost.estimate(once).pretrain_flops
    assert sorted(results.rglob("*")) == before
    plan(two, "tiny", results=results)
    assert sorted(results.rglob("*")) != before


def test_complete_benchmark__has_nothing_to_run(two, tmp_path, monkeypatch):
    fake_results(two, "tiny", tmp_path / "results")
    monkeypatch.setattr(cost, "device_speed", lambda config: 1 / 0)
    assert "Nothing is missing." in printed(two, "tiny", results=tmp_path / "results")


def test_finished_pretraining__is_not_counted_again(two, tmp_path):
    first, second = (
        cost.sized(cell.config) for cell in benchmark.cells(two, "tiny") if cell.label == "dvae"
    )
    for config, made in ((first, "pretrain.json"), (second, "pretrain.jsonl")):
        folder = tmp_path / "runs" / config.run_id
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(config.model_dump_json())
        (folder / made).write_text("{}")
    found = forecast(two, "tiny", results=tmp_path / "results", out=tmp_path / "runs")
    assert (found.num_pretrainings, found.num_missing) == (4, 3)
    assert found.rows[1].pretrain_flops == cost.estimate(second).pretrain_flops
    assert {job.name: job for job in found.jobs}["evaluate dvae, seed 0"].needs == ()


def test_shared_pretraining__is_made_once(tmp_path):
    path = tmp_path / "lengths.toml"
    path.write_text(TWO.replace("target = ['pixel', 'dvae']", '"linear.epochs" = ["x1", "x2"]'))
    found = forecast(str(path), "tiny", results=tmp_path)
    assert (found.num_pretrainings, found.num_missing) == (2, 2)
    assert found.rows[0].pretrain_flops > 0 == found.rows[1].pretrain_flops
    names = [job.name for job in found.jobs]
    assert len(set(names)) == 6
    shared = found.jobs[names.index("evaluate epochs 100, seed 1")]
    assert shared.needs == ("pre-train epochs 50, seed 1",)


def test_printed__tells_hours_storage_and_the_longest_chain(two, tmp_path):
    settings = {"results": tmp_path, "device_tflops": 0.01}
    total = forecast(two, "tiny", results=tmp_path).total_flops / 0.01e12 / 3600
    text = " ".join(printed(two, "tiny", **settings, gpus=1).split())
    for part in ("two, tiny", "fit dvae", "0.01 TFLOP/s, as given", "4 distinct, 4 to be made",
                 "GB kept in", "fit_epochs passes at 3 x", "On 1 GPU: 9 jobs",
                 f"{total:.3g} GPU-hours, done after {total:.3g} h", "Longest chain",
                 "fit dvae (0."):  # fmt: skip
        assert part in text
    several = " ".join(printed(two, "tiny", **settings, gpus=4, queue_limit=7).split())
    assert "On 4 GPUs, at most 7 jobs queued or running: 9 jobs" in several


def test_speed__is_measured_here_unless_given(two, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cost, "device_speed", lambda config: asked.append(config) or 2e12)
    assert "Hours at 2 TFLOP/s, measured on this device" in printed(two, "tiny", results=tmp_path)
    assert asked[0].target.name in ("pixel", "dvae")
    printed(two, "tiny", results=tmp_path, device_tflops=1)
    assert len(asked) == 1


def test_published_rows_alone__are_told_in_a_sentence(tmp_path):
    assert "published rows only: there is nothing to run" in printed("methods", "tiny", results=tmp_path)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "preset"),
    list(zip(recipe.names("benchmarks"), itertools.cycle(recipe.names("preset")), strict=False)),
)
def test_every_benchmark__has_a_forecast_without_data(name, preset, tmp_path):
    if benchmark.load_benchmark(name).division != "published":
        found = forecast(name, preset, results=tmp_path)
        assert found.total_flops > 0 and all(row.missing for row in found.rows)
        assert found.num_missing == found.num_pretrainings


def test_wrong_numbers__are_refused(two, tmp_path):
    with pytest.raises(UserError, match="device_tflops=0: allowed: above 0"):
        dry_run(two, "tiny", results=tmp_path, device_tflops=0)
    with pytest.raises(UserError, match="queue_limit=3 needs gpus"):
        dry_run(two, "tiny", results=tmp_path, queue_limit=3)
    with pytest.raises(UserError, match="gpus=0: allowed"):
        dry_run(two, "tiny", results=tmp_path, device_tflops=1, gpus=0)
