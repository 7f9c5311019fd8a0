"""The published numbers of one target, wherever a benchmark file says which those are."""

from mim_bench.analysis.published.match import published_rows, setting
from mim_bench.config import recipe
from mim_bench.config.benchmark import load_benchmark


def numbers(target: str) -> list[list[str]]:
    """Table, setting, value and place of each published row whose target is this one."""
    rows: dict[tuple[str, ...], None] = {}
    for name in recipe.names("benchmarks"):
        benchmark = load_benchmark(name)
        if benchmark.published is None:
            continue
        published_target = benchmark.published.values.get("target", {}).get(target)
        for row in published_rows(benchmark):
            if published_target is not None and row.target == published_target:
                rows[(row.table_title, setting(row), f"{row.metric} {row.shown()}", row.cite)] = (
                    None
                )
    return [list(row) for row in rows]
