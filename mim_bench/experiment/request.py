"""The request of a sweep, as the command line takes it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SweepRequest:
    """A user's request to `sweep`."""

    name: str
    preset: str
    out: Path
    results: Path
    overrides: tuple[str, ...] = ()
    protocols: tuple[str, ...] | None = None
    """Subset of the benchmark's protocols; by default all."""
    retry_failed: bool = False
    evaluate_separately: bool = False
    """Evaluations are jobs of their own, after the pre-trainings."""
    command: str | None = None
    """Command line that records name as their origin; by default this process's."""
