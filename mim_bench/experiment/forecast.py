"""Remaining work of a sweep in numbers: FLOPs, jobs and disk, of one benchmark or of all at once.

No images are needed and nothing is written. Runs and records that several benchmarks share are counted once,
in the first that needs them, as a sweep makes them once and copies the records.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mim_bench.config import recipe
from mim_bench.config.benchmark import at_preset, load_benchmark
from mim_bench.config.run import RunConfig
from mim_bench.config.trainings import needs_pretraining
from mim_bench.experiment import cost
from mim_bench.experiment.request import SweepRequest
from mim_bench.experiment.schedule import Job
from mim_bench.records.finished import pretrained
from mim_bench.records.pending import PendingCell, list_pending
from mim_bench.records.run_folder import record_hash, sweep_key

ALL = "all"
"""Stands for every benchmark that has runs."""
_FIRST = "targets"
"""The benchmark that is counted first: the main table, so that the others show what they add to it."""


@dataclass(frozen=True)
class Work:
    """Remaining work of a cell."""

    pretrain_flops: float
    """0 where the pre-training is there, or counted in another cell."""
    protocol_flops: float

    @property
    def total_flops(self) -> float:
        return self.pretrain_flops + self.protocol_flops


@dataclass(frozen=True)
class ForecastRow:
    """The cells of one label, all seeds."""

    label: str
    seeds: tuple[int, ...]
    done: str
    """Protocols, each with its seeds where it is not all of them."""
    missing: str
    work: tuple[Work, ...]
    """Work of each cell that has some left."""


@dataclass(frozen=True)
class BenchmarkForecast:
    """One benchmark's share."""

    name: str
    rows: tuple[ForecastRow, ...]
    num_cells: int
    num_done: int
    """Cells that lack nothing."""
    num_new: int
    """Pre-trainings that are to be made and that no earlier benchmark needs."""
    num_shared: int
    """Pre-trainings that are to be made and that an earlier benchmark has counted."""

    @property
    def work(self) -> list[Work]:
        return [item for row in self.rows for item in row.work]


@dataclass(frozen=True)
class Forecast:
    """Remaining work of a sweep."""

    benchmarks: tuple[BenchmarkForecast, ...]
    """One a benchmark."""
    fits: dict[str, float | None]
    """Job that fits a target before its missing pre-trainings -> rough FLOPs; unset: unknown."""
    jobs: tuple[Job, ...]
    """Fits, then seed by seed pre-trainings and evaluations, their hours on one GPU at 1 FLOP/s."""
    num_pretrainings: int
    """Distinct ones that the benchmarks need."""
    kept_bytes: int
    """Weights that the missing runs leave."""
    growing_bytes: tuple[int, ...]
    """Storage of each missing run while it is under way, beyond what it leaves, largest first."""
    num_files: int
    """Files that the missing runs leave in their folders."""
    longest: RunConfig | None
    """The missing run with most to do, which a device's speed is measured on."""

    @property
    def rows(self) -> list[ForecastRow]:
        """Totals of every benchmark."""
        return [row for benchmark in self.benchmarks for row in benchmark.rows]

    @property
    def num_missing(self) -> int:
        """Distinct pre-trainings that are still to be made."""
        return sum(benchmark.num_new for benchmark in self.benchmarks)

    @property
    def total_flops(self) -> float:
        """Totals of everything that is missing, as far as it is known."""
        runs = sum(item.total_flops for benchmark in self.benchmarks for item in benchmark.work)
        return runs + sum(flops or 0.0 for flops in self.fits.values())

    def most_bytes(self, jobs: int = 1) -> int:
        """The most there is at any time, with so many runs at a time."""
        return self.kept_bytes + sum(self.growing_bytes[:jobs])


def forecast(request: SweepRequest) -> Forecast:
    """Missing runs of a benchmark, or of every benchmark (`all`).

    A pre-training that is finished in `request.out` is not counted again.
    """
    pending_cells = {
        name: list_pending(
            name, request.preset, results=request.results, overrides=request.overrides,
            protocols=protocols, copy=False,
        )
        for name, protocols in _benchmarks(request).items()
    }  # fmt: skip
    all_cells = [pending for of_benchmark in pending_cells.values() for pending in of_benchmark]
    configs_missing = [pending.cell.config for pending in all_cells if pending.missing]
    ledger = _Ledger(pretrained(request.out, configs_missing))
    benchmarks = tuple(
        _benchmark(name, pending_cells[name], ledger, is_alone=len(pending_cells) == 1)
        for name in pending_cells
    )
    fits = dict(ledger.fits.values())
    jobs = [(-1, 0, Job(fit, cost.hours(value or 0.0, 1))) for fit, value in fits.items()]
    configs = list(ledger.runs.values())
    costs = [cost.estimate(config) for config in configs]
    flops = [estimated.total_flops for estimated in costs]
    growing = (estimated.storage_bytes - estimated.kept_bytes for estimated in costs)
    return Forecast(
        benchmarks=benchmarks,
        fits=fits,
        jobs=tuple(job for *_, job in sorted(jobs + ledger.jobs, key=lambda job: job[:2])),
        num_pretrainings=len(
            {
                pending.cell.config.hash
                for pending in all_cells
                if needs_pretraining(pending.cell.config)
            }
        ),
        kept_bytes=sum(estimated.kept_bytes for estimated in costs),
        growing_bytes=tuple(sorted(growing, reverse=True)),
        num_files=sum(estimated.num_files for estimated in costs),
        longest=configs[flops.index(max(flops))] if configs else None,
    )


def _benchmarks(request: SweepRequest) -> dict[str, Sequence[str] | None]:
    """Benchmark -> the requested protocols; of `all` those that each benchmark has."""
    chosen = request.protocols
    if request.name != ALL:
        return {request.name: chosen}
    names = dict.fromkeys([_FIRST, *recipe.names("benchmarks")])
    benchmarks = {name: at_preset(load_benchmark(name), request.preset) for name in names}
    protocols_of = {
        name: {*benchmark.protocols, *benchmark.first_only}
        for name, benchmark in benchmarks.items()
    }
    return {
        name: chosen and [protocol for protocol in chosen if protocol in protocols_of[name]]
        for name, benchmark in benchmarks.items()
        if benchmark.has_runs_at(request.preset)
    }


@dataclass
class _Ledger:
    """Runs and records counted so far, so that nothing is counted twice."""

    pretrained: set[str]
    """Hashes of runs whose pre-training is finished."""
    pretrainings: dict[str, str] = field(default_factory=dict)
    """Hash of a run -> name of its job."""
    records: set[str] = field(default_factory=set)
    """Hashes of those to be made."""
    fits: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    runs: dict[str, RunConfig] = field(default_factory=dict)
    """Hash -> config with all protocols that are to be run in its folder."""
    jobs: list[tuple[int, int, Job]] = field(default_factory=list)
    """Jobs with their seed and stage, by which they are ordered."""

    def add(self, pending: PendingCell, title: str) -> Work | None:
        """Work of a cell that no earlier cell has, if any."""
        wanted, key = pending.config, pending.config.hash
        hashes = {record_hash(wanted, protocol): protocol for protocol in pending.missing}
        new = [protocol for own, protocol in hashes.items() if own not in self.records]
        if not new:
            return None
        self.records |= set(hashes)
        config = _with_protocols(wanted, new)
        counted_protocols = self.runs.get(key, config).evaluate.protocols
        self.runs[key] = _with_protocols(config, dict.fromkeys([*counted_protocols, *new]))
        estimated = cost.estimate(config)
        pretrains = self._pretrains(config)
        own, first = sum(estimated.protocol_flops.values()), 0.0
        if pretrains and key not in self.pretrainings:
            first, self.pretrainings[key] = estimated.pretrain_flops, f"pre-train {title}"
            job = Job(self.pretrainings[key], cost.hours(first, 1), self._fit(config))
            self.jobs.append((config.seed, 1, job))
        needs = (self.pretrainings[key],) if pretrains else ()
        evaluation = Job(f"evaluate {title}", cost.hours(own, 1), needs)
        self.jobs.append((config.seed, 2, evaluation))
        return Work(first, own)

    def wanted(self, pending_cells: Iterable[PendingCell]) -> set[str]:
        """Hashes of the runs that cells need and whose pre-training is to be made."""
        configs = (pending.config for pending in pending_cells if pending.missing)
        return {config.hash for config in configs if self._pretrains(config)}

    def _pretrains(self, config: RunConfig) -> bool:
        return needs_pretraining(config) and config.hash not in self.pretrained

    def _fit(self, config: RunConfig) -> tuple[str, ...]:
        """Name of the job that fits the run's target, if one must."""
        key = sweep_key(config)
        if key not in self.fits:
            flops = cost.fit_flops(config)
            if flops == 0:
                return ()
            name = f"fit {config.target.name}, seed {config.seed}"
            number = 1 + sum(other.startswith(name) for other, _ in self.fits.values())
            self.fits[key] = (name if number == 1 else f"{name} {number}"), flops
        return (self.fits[key][0],)


def _with_protocols(config: RunConfig, protocols: Iterable[str]) -> RunConfig:
    evaluate = config.evaluate.model_copy(update={"protocols": tuple(protocols)})
    return config.model_copy(update={"evaluate": evaluate})


# ---- a benchmark's rows


def _benchmark(
    name: str, pending_cells: Sequence[PendingCell], ledger: _Ledger, *, is_alone: bool
) -> BenchmarkForecast:
    counted_before, required = set(ledger.pretrainings), ledger.wanted(pending_cells)
    begin = "" if is_alone else f"{name}: "
    rows: dict[str, list[PendingCell]] = {}
    work: dict[str, list[Work]] = {}
    for pending in pending_cells:
        label = pending.cell.label
        rows.setdefault(label, []).append(pending)
        cell_work = ledger.add(pending, f"{begin}{label}, seed {pending.config.seed}")
        work.setdefault(label, []).extend([cell_work] if cell_work else [])
    return BenchmarkForecast(
        name=Path(name).stem,
        rows=tuple(_forecast_row(label, group, work[label]) for label, group in rows.items()),
        num_cells=len(pending_cells),
        num_done=sum(not pending.missing for pending in pending_cells),
        num_new=len(required - counted_before),
        num_shared=len(required & counted_before),
    )


def _forecast_row(
    label: str, pending_cells: Sequence[PendingCell], work: Iterable[Work]
) -> ForecastRow:
    seeds = tuple(pending.config.seed for pending in pending_cells)
    done, missing = (_protocols(pending_cells, missing=which) for which in (False, True))
    return ForecastRow(label, seeds, done, missing, tuple(work))


def _protocols(pending_cells: Sequence[PendingCell], *, missing: bool) -> str:
    """`knn, finetune (seeds 1 2)`: what is missing, or what is done."""
    seeds: dict[str, list[int]] = {}  # in the order of the protocols
    for pending in pending_cells:
        for protocol in pending.wanted:
            seeds_done = seeds.setdefault(protocol, [])
            if (protocol in pending.missing) == missing:
                seeds_done.append(pending.cell.config.seed)

    def with_seeds(name: str, seeds_done: list[int]) -> str:
        if len(seeds_done) == len(pending_cells):
            return name
        return f"{name} (seed{'s' * (len(seeds_done) > 1)} {' '.join(map(str, seeds_done))})"

    return ", ".join(
        with_seeds(name, seeds_done) for name, seeds_done in seeds.items() if seeds_done
    )
