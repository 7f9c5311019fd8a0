"""`forecast` and `dry_run`: what is missing and what it costs, of one benchmark and of all, without data and
without writing."""

import itertools
import re

import pytest
from fake import fake_results

from mim_bench.config import cells as benchmark_cells
from mim_bench.config import recipe
from mim_bench.config.benchmark import load_benchmark
from mim_bench.config.trainings import needs_pretraining
from mim_bench.errors import UserError
from mim_bench.experiment import cost
from mim_bench.experiment.dry_run import dry_run
from mim_bench.experiment.forecast import forecast
from mim_bench.experiment.request import SweepRequest
from mim_bench.records.pending import list_pending
from mim_bench.records.run_folder import record_hash

TWO = (
    "title = 't'\ndescription = 'd'\nrebuilds = 'r'\nclaim = 'c'\nseeds = [0, 1]\n"
    "protocols = ['knn', 'linear']\nfirst_only = ['scratch']\n[grid]\ntarget = ['pixel', 'dvae']\n"
)


@pytest.fixture
def two(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(TWO)
    return str(path)


def request(name, preset, *, results, **options):
    out = options.pop("out", results / "no-runs")
    return SweepRequest(name, preset, out, results, **options)


def printed(*arguments, **options):
    devices = {"device_tflops", "gpus", "gpus_per_job", "queue_limit"} & options.keys()
    devices = {name: options.pop(name) for name in devices}
    shown = dry_run(request(*arguments, **options), **devices)
    rows = ["│" + "".join(f" {text} │" for text in row) for row in (shown.headings, *shown.rows)]
    return "\n".join([shown.title, *rows, *shown.lines])


def pretrain_flops(row):
    return sum(work.pretrain_flops for work in row.work)


def test_missing_runs__cost_what_their_estimates_say(two, tmp_path):
    found = forecast(request(two, "tiny", results=tmp_path / "results"))
    cells = benchmark_cells.cells(two, "tiny")
    single = [cost.estimate(cell.config) for cell in cells]
    assert [(row.label, row.seeds, row.done) for row in found.rows] == [
        ("pixel", (0, 1), ""), ("dvae", (0, 1), ""),
    ]  # fmt: skip
    assert [row.missing for row in found.rows] == ["knn, linear, scratch", "knn, linear"]
    fit = cost.fit_flops(cells[1].config)
    assert found.fits == {"fit dvae, seed 0": fit, "fit dvae, seed 1": fit}
    assert found.total_flops == pytest.approx(sum(one.total_flops for one in single) + 2 * fit)
    assert pretrain_flops(found.rows[0]) == single[0].pretrain_flops + single[2].pretrain_flops
    assert [work.total_flops for work in found.rows[1].work] == [
        one.total_flops for one in (single[1], single[3])
    ]
    assert (found.num_pretrainings, found.num_missing) == (4, 4)
    assert found.num_files == sum(one.num_files for one in single)
    assert found.kept_bytes == sum(one.kept_bytes for one in single)
    most = max(one.storage_bytes - one.kept_bytes for one in single)
    assert found.most_bytes() == found.kept_bytes + most
    assert found.most_bytes(99) == sum(one.storage_bytes for one in single)


def test_jobs__wait_for_fit_and_pretraining(two, tmp_path):
    found = forecast(request(two, "tiny", results=tmp_path / "results"))
    jobs = {job.name: job for job in found.jobs}
    assert list(jobs) == [
        "fit dvae, seed 0",
        "fit dvae, seed 1",
        *(f"{what} {target}, seed {seed}" for seed in (0, 1)
          for what in ("pre-train", "evaluate") for target in ("pixel", "dvae")),
    ]  # fmt: skip
    assert jobs["pre-train pixel, seed 1"].needs == ()
    assert jobs["pre-train dvae, seed 1"].needs == ("fit dvae, seed 1",)
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
    pixel, dvae = forecast(request(two, "tiny", results=results)).rows
    assert (dvae.done, dvae.missing) == ("knn, linear (seed 0)", "linear (seed 1)")
    assert pixel.missing == "linear (seed 1)" and "scratch" in pixel.done
    once = next(c.config for c in benchmark_cells.cells(two, "tiny") if c.label == "dvae")
    assert pretrain_flops(dvae) == cost.estimate(once).pretrain_flops
    assert sorted(results.rglob("*")) == before
    list_pending(two, "tiny", results=results)
    assert sorted(results.rglob("*")) != before


def test_complete_benchmark__has_nothing_to_run(two, tmp_path, monkeypatch):
    fake_results(two, "tiny", tmp_path / "results")
    monkeypatch.setattr(cost, "device_speed", lambda config: 1 / 0)
    assert "Nothing is missing." in printed(two, "tiny", results=tmp_path / "results")


def test_finished_pretraining__is_not_counted_again(two, tmp_path):
    first, second = (
        cost.sized(cell.config)
        for cell in benchmark_cells.cells(two, "tiny")
        if cell.label == "dvae"
    )
    for config, made in ((first, "pretrain.json"), (second, "pretrain.jsonl")):
        folder = tmp_path / "runs" / config.run_id
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(config.model_dump_json())
        (folder / made).write_text("{}")
    found = forecast(request(two, "tiny", results=tmp_path / "results", out=tmp_path / "runs"))
    assert (found.num_pretrainings, found.num_missing) == (4, 3)
    assert pretrain_flops(found.rows[1]) == cost.estimate(second).pretrain_flops
    assert {job.name: job for job in found.jobs}["evaluate dvae, seed 0"].needs == ()


def test_shared_pretraining__is_made_once(tmp_path):
    path = tmp_path / "lengths.toml"
    path.write_text(TWO.replace("target = ['pixel', 'dvae']", '"linear.epochs" = ["x1", "x2"]'))
    found = forecast(request(str(path), "tiny", results=tmp_path))
    assert (found.num_pretrainings, found.num_missing) == (2, 2)
    assert pretrain_flops(found.rows[0]) > 0 == pretrain_flops(found.rows[1])
    names = [job.name for job in found.jobs]
    assert len(set(names)) == 6
    shared = found.jobs[names.index("evaluate epochs 100, seed 1")]
    assert shared.needs == ("pre-train epochs 50, seed 1",)


def test_printed__tells_hours_storage_and_the_longest_chain(two, tmp_path):
    settings = {"results": tmp_path, "device_tflops": 0.01}
    total = forecast(request(two, "tiny", results=tmp_path)).total_flops / 0.01e12 / 3600
    text = " ".join(printed(two, "tiny", **settings, gpus=1).split())
    for part in ("two, tiny", "fit dvae", "0.01 TFLOP/s a GPU, as given", "4 distinct, 4 to be made",
                 "GB kept in", "fit_epochs passes at 3 x", "On 1 GPU: 10 jobs",
                 f"{total:.3g} GPU-hours, done after {total:.3g} h", "Longest chain",
                 "fit dvae, seed"):  # fmt: skip
        assert part in text
    several = " ".join(printed(two, "tiny", **settings, gpus=4, queue_limit=7).split())
    assert "On 4 GPUs, at most 7 jobs queued or running: 10 jobs" in several


def test_hours_of_a_cell__are_told_from_the_least_to_the_most(two, tmp_path):
    text = printed(two, "tiny", results=tmp_path, device_tflops=0.01)
    found = forecast(request(two, "tiny", results=tmp_path))
    for row in found.rows:
        hours = [cost.hours(work.total_flops, 0.01e12) for work in row.work]
        assert len(hours) == 2 and f"{hours[0]:.3g}" == f"{hours[1]:.3g}"
        line = next(line for line in text.splitlines() if f"│ {row.label} " in line)
        assert [cell.strip() for cell in line.split("│")[-3:-1]] == [
            f"{hours[0]:.3g}", f"{sum(hours):.3g}",
        ]  # fmt: skip
    fake_results(two, "tiny", tmp_path, seeds=(0,))
    for path in tmp_path.rglob("*__knn.*"):
        path.unlink()
    line = next(
        line for line in printed(two, "tiny", results=tmp_path, device_tflops=0.01).splitlines()
        if "│ pixel " in line
    )  # fmt: skip
    probe, whole = (
        cost.hours(work.total_flops, 0.01e12)
        for work in forecast(request(two, "tiny", results=tmp_path)).rows[0].work
    )
    assert line.split("│")[-3].strip() == f"{probe:.3g} to {whole:.3g}"


def test_several_gpus_a_job__divide_its_time_and_not_its_gpu_hours(two, tmp_path):
    def run(gpus, gpus_per_job):
        text = printed(
            two, "tiny", results=tmp_path, device_tflops=0.001, gpus=gpus, gpus_per_job=gpus_per_job
        )
        text = " ".join(text.split())
        return text, *(
            float(re.search(pattern, text)[1])
            for pattern in (r"([\d.]+) GPU-hours, done", r"done after ([\d.]+) h")
        )

    _, alone, makespan = run(1, 1)
    text, hours, quick = run(4, 4)
    assert "On 4 GPUs, 4 a job and so many times as fast (a fit: 1): 10 jobs" in text
    assert "running 1 at a time" in text
    assert hours == alone
    fit = cost.hours(forecast(request(two, "tiny", results=tmp_path)).fits["fit dvae, seed 0"], 1e9)
    # two fits side by side, then everything else on all
    assert quick == pytest.approx(
        (makespan - 2 * fit) / 4 + fit, rel=0.01
    )  # three digits are printed
    assert quick < makespan / 2


def test_speed__is_measured_here_unless_given(two, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cost, "device_speed", lambda config: asked.append(config) or 2e12)
    text = printed(two, "tiny", results=tmp_path)
    assert "Minutes at 2 TFLOP/s, measured on this CPU" in text and "minutes a cell" in text
    assert asked[0].target.name in ("pixel", "dvae")
    assert "GPU-hours a cell" in printed(two, "tiny", results=tmp_path, device_tflops=1)
    assert len(asked) == 1
    monkeypatch.setattr(cost, "device_speed", lambda config: 1e6)
    text = printed(two, "tiny", results=tmp_path)
    assert "--device-tflops" in text and "hours" not in text and "minutes" not in text
    one = printed(two, "tiny", results=tmp_path, device_tflops=1, protocols=("knn",))
    assert "linear" not in one  # what is not asked for is neither done nor missing
    with pytest.raises(UserError, match="has no 'partial'; .*allowed: knn, linear, scratch"):
        printed(two, "tiny", results=tmp_path, protocols=("partial",))


def test_published_rows_alone__are_told_in_a_sentence(tmp_path):
    assert "published rows only: there is nothing to run" in printed("methods", "tiny", results=tmp_path)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "preset"),
    list(zip(recipe.names("benchmarks"), itertools.cycle(recipe.names("preset")), strict=False)),
)
def test_every_benchmark__has_a_forecast_without_data(name, preset, tmp_path):
    if load_benchmark(name).has_runs_at(preset):
        found = forecast(request(name, preset, results=tmp_path))
        assert found.total_flops > 0 and all(row.missing for row in found.rows)
        assert found.num_missing == found.num_pretrainings


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Every benchmark with runs, its cells, and the forecast of all."""
    names = [n for n in recipe.names("benchmarks")
             if load_benchmark(n).has_runs_at("tiny")]  # fmt: skip
    cells = {name: benchmark_cells.cells(name, "tiny") for name in names}
    return cells, forecast(request("all", "tiny", results=tmp_path_factory.mktemp("results")))


def test_all__makes_every_run_and_record_once(everything):
    cells, found = everything
    assert {part.name for part in found.benchmarks} == set(cells)
    configs = [cell.config for of_one in cells.values() for cell in of_one]
    runs = {config.hash for config in configs if needs_pretraining(config)}
    assert found.num_missing == found.num_pretrainings == len(runs)
    assert sum(job.name.startswith("pre-train") for job in found.jobs) == len(runs)
    wanted: dict[str, set[str]] = {}
    hashes = set()
    for config in configs:
        wanted.setdefault(config.hash, set()).update(config.evaluate.protocols)
        hashes |= {record_hash(config, name) for name in config.evaluate.protocols}
    # no two cells of a run ask for one protocol with other settings, so folders hold each record
    assert len(hashes) == sum(map(len, wanted.values()))
    whole = [
        config.model_copy(
            update={"evaluate": config.evaluate.model_copy(
                update={"protocols": tuple(sorted(wanted[config.hash]))})}
        )
        for config in {config.hash: config for config in configs}.values()
    ]  # fmt: skip
    assert found.num_files == sum(cost.estimate(config).num_files for config in whole)
    pretraining = sum(pretrain_flops(row) for row in found.rows)
    assert pretraining == pytest.approx(sum(cost.estimate(c).pretrain_flops for c in whole))
    assert len({job.name for job in found.jobs}) == len(found.jobs)


def test_all__says_what_a_benchmark_shares_with_those_above(everything):
    cells, found = everything
    seen: set[str] = set()
    for part in found.benchmarks:
        own = {cell.config.hash for cell in cells[part.name] if needs_pretraining(cell.config)}
        assert (part.num_new, part.num_shared) == (len(own - seen), len(own & seen)), part.name
        assert part.num_cells == len(cells[part.name]) and part.num_done == 0
        seen |= own
    assert found.benchmarks[0].name == "targets" and found.benchmarks[0].num_shared == 0
    shared = next(part for part in found.benchmarks if part.name == "scratch_vs_pretrained")
    assert shared.num_new == 0 < shared.num_shared


def test_all__evaluates_a_shared_run_once(everything):
    cells, found = everything
    part = next(part for part in found.benchmarks if part.name == "scratch_vs_pretrained")
    # fine-tuning is a record of `targets`, so training from scratch alone is left, once a seed
    first = [
        cell.config for cell in cells[part.name] if "scratch" in cell.config.evaluate.protocols
    ]
    flops = cost.estimate(first[0]).protocol_flops
    scratch = flops["scratch"] + flops["scratch_flops"]
    assert [(w.pretrain_flops, w.protocol_flops) for w in part.work] == [(0, scratch)] * 3
    seen: set[str] = set()
    num_jobs = 0
    for other in found.benchmarks:
        for config in (cell.config for cell in cells[other.name]):
            hashes = {record_hash(config, name) for name in config.evaluate.protocols}
            num_jobs += bool(hashes - seen)
            seen |= hashes
    assert sum(job.name.startswith("evaluate") for job in found.jobs) == num_jobs


def test_all__lets_an_evaluation_wait_for_another_benchmarks_pretraining(everything):
    _, found = everything
    needs = {job.name: job.needs for job in found.jobs}
    # what is left of partial_finetune once `targets` has the probe and the fine-tuning
    assert needs["evaluate partial_finetune: hog, seed 1"] == ("pre-train targets: hog, seed 1",)


def test_all__printed_has_one_line_a_benchmark(everything, tmp_path):
    _, found = everything
    text = printed("all", "tiny", results=tmp_path, device_tflops=1, gpus=8, queue_limit=20)
    lines = {
        cells[1]: cells[2:-1]
        for line in text.splitlines()
        if len(cells := [cell.strip() for cell in line.split("│")]) == 11
    }
    for part in found.benchmarks:
        numbers = [part.num_cells, part.num_done, part.num_new, part.num_shared]
        assert lines[part.name][:4] == [str(number) for number in numbers]
    assert lines["total"][0] == str(sum(part.num_cells for part in found.benchmarks))
    assert lines["total"][2] == str(found.num_missing)
    text = " ".join(text.split())
    assert f"{found.num_pretrainings} distinct, {found.num_missing} to be made; `shared`" in text
    assert f"at most 20 jobs queued or running: {len(found.jobs)} jobs" in text


def test_all__is_no_benchmark_to_run(tmp_path):
    with pytest.raises(UserError, match="unknown benchmark 'all'"):
        list_pending("all", "tiny", results=tmp_path)


def test_wrong_numbers__are_refused(two, tmp_path):
    with pytest.raises(UserError, match="device_tflops=0: allowed: above 0"):
        dry_run(request(two, "tiny", results=tmp_path), device_tflops=0)
    with pytest.raises(UserError, match="queue_limit=3 needs gpus"):
        dry_run(request(two, "tiny", results=tmp_path), queue_limit=3)
    with pytest.raises(UserError, match="gpus_per_job=8 needs gpus"):
        dry_run(request(two, "tiny", results=tmp_path), gpus_per_job=8)
    for number in (0, 8):
        with pytest.raises(UserError, match=f"gpus_per_job={number}: allowed: 1 to gpus=4"):
            dry_run(request(two, "tiny", results=tmp_path), gpus=4, gpus_per_job=number)
    with pytest.raises(UserError, match="gpus=0: allowed"):
        dry_run(request(two, "tiny", results=tmp_path), device_tflops=1, gpus=0)
