"""Differences between two rows, paired by seed and by test image.

Rows of a closed table share seeds, images, crops and masks, so their difference is taken image by image
within each seed. Its interval comes from a bootstrap that draws seeds and test images anew at the same
time: both are samples. Of S seeds S - 1 are drawn (Rao and Wu, JASA 1988), because drawing S of so few would make the
interval too narrow; with a single seed only images are drawn, and `num_seeds` says so.

Legend: S seeds, N test images, R draws of the bootstrap.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_NUM_DRAWS = 10_000
_LEVEL = 0.95
_DETECTED = 1.959964 + 0.841621
"""Standard errors of a true difference that a two-sided test at 5 % finds four times in five."""
METHOD = (
    "Differences are paired by seed and test image; 95 % percentile interval of a bootstrap over both "
    f"(S - 1 of S seeds, all images, {_NUM_DRAWS:,} draws)."
)


@dataclass(frozen=True)
class Difference:
    """How much better one row is than another, in fractions of the test images."""

    mean: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    stderr: float
    """Standard error of the mean, from the bootstrap."""
    num_seeds: int
    """Seeds that both rows have."""

    @property
    def is_distinguishable(self) -> bool:
        """Whether the interval leaves 0 out; never with a single seed, whose chance is not in it."""
        return self.num_seeds > 1 and not self.low <= 0 <= self.high

    @property
    def detectable(self) -> float:
        """The least true difference that data like these would find four times in five."""
        return _DETECTED * self.stderr


def difference(
    row: Mapping[int, np.ndarray], reference: Mapping[int, np.ndarray]
) -> Difference | None:
    """Seed -> (N,) correctness of each row's images -> row minus reference; None without a common seed.

    Raises:
        ValueError: the two rows were evaluated on different numbers of images.
    """
    seeds = sorted(set(row) & set(reference))
    if not seeds:
        return None
    if len({len(rows[seed]) for rows in (row, reference) for seed in seeds}) > 1:
        raise ValueError("rows evaluated on different images cannot be paired")
    each = np.stack([row[s].astype(np.float64) - reference[s] for s in seeds])  # (S, N)
    drawn = _bootstrap(each)
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Difference(
        float(each.mean()), float(low), float(high), float(drawn.std(ddof=1)), len(seeds)
    )


def _bootstrap(each: np.ndarray) -> np.ndarray:
    """(S, N) differences -> (R,) means over seeds and images drawn anew; the same for the same input."""
    num_seeds, num_images = each.shape
    generator = np.random.default_rng(0)
    # only how often each distinct column of differences is drawn matters: far fewer than N
    columns, counts = np.unique(each, axis=1, return_counts=True)
    images = generator.multinomial(
        num_images, counts / num_images, size=_NUM_DRAWS
    )  # (R, distinct)
    of_seeds = images @ columns.T / num_images  # (R, S)
    drawn_seeds = max(1, num_seeds - 1)
    seeds = generator.multinomial(drawn_seeds, [1 / num_seeds] * num_seeds, size=_NUM_DRAWS)
    return (of_seeds * seeds).sum(1) / drawn_seeds
