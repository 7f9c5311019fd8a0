"""The models of every setting: recipes, benchmarks, presets, and what each protocol is called and needs."""

from mim_bench.config.run import RunConfig

__all__ = ["RunConfig"]
