"""Base class of targets that are fitted to training images, and samples to fit on.

Legend: B images of a batch, N rows, D values of a row, K clusters.
"""

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from mim_bench.errors import UserError
from mim_bench.target import Target, TargetContext, TrainingImages

MIN_PERPLEXITY = 0.25
"""Least perplexity as a fraction of the vocabulary; with less a tokenizer has collapsed, and predicting its tokens is
hardly a task."""
_ITERATIONS = 30
_ROWS_AT_ONCE = 16_384
"""So that their distances to all centres fit in memory."""


class FittedTarget(Target):
    """A target with a state that `fit` finds; the state says itself whether it is fitted."""

    fitted: Tensor

    def __init__(self, params: object, context: TargetContext) -> None:
        super().__init__(params, context)
        self.register_buffer("fitted", torch.tensor(False))
        self._ready = False

    @property
    def needs_fit(self) -> bool:
        if not self._ready:  # asked once it is: reading a flag makes the host wait for a GPU
            self._ready = bool(self.fitted)
        return not self._ready

    def skip_fit(self) -> None:
        self.fitted.fill_(True)

    def require_fit(self) -> None:
        """Raises RuntimeError before `fit`."""
        if self.needs_fit:
            raise RuntimeError(f"{type(self).__name__} needs `fit`, or the state of a fitted one")


def sample_rows(
    images: TrainingImages, rows_of: Callable[[Tensor], Tensor], num: int, *, seed: int
) -> Tensor:
    """About `num` rows (N, D), float64 on the CPU, spread evenly over one pass of the training images.

    Args:
        rows_of: images (B, C, H, W) -> (B, L, D).
    """
    generator = torch.Generator().manual_seed(seed)
    per_image = math.ceil(num / max(1, images.num_images))
    samples = []
    for batch in images:
        rows = rows_of(batch).cpu().double()
        row_index = torch.rand(rows.shape[:2], generator=generator).argsort(1)[:, :per_image]
        samples.append(
            rows.gather(1, row_index[:, :, None].expand(-1, -1, rows.shape[2])).flatten(0, 1)
        )
    all_rows = torch.cat(samples)
    return all_rows[torch.randperm(len(all_rows), generator=generator)[:num]]


def centers(rows: Tensor, num: int, parameter: str) -> Tensor:
    """Lloyd's k-means by scipy: rows (N, D) -> centres (K, D) float32, begun at the first different rows.

    Raises UserError where there are fewer different rows than centres; `parameter` is the one to lower.
    """
    _, first = np.unique(rows.numpy(), axis=0, return_index=True)
    if len(first) < num:
        raise UserError(
            f"{parameter}={num}: allowed: at most {len(first)}, the different ones of {len(rows)} samples"
        )
    initial = rows[torch.from_numpy(np.sort(first)[:num])].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty cluster keeps its place
        codes, _ = kmeans2(rows.numpy(), initial, iter=_ITERATIONS, minit="matrix")
    return torch.from_numpy(codes).float()


def nearest(rows: Tensor, codebook: Tensor) -> Tensor:
    """(..., D) and (K, D) -> index of the nearest centre, int64 of shape (...).

    In float64, where the order of summation, which a batch may change, moves no distance that matters.
    """
    codes = codebook.double()
    lengths = codes.square().sum(1)  # |x - c|^2 without |x|^2
    parts = rows.flatten(0, -2).split(_ROWS_AT_ONCE)
    indices = [(lengths - 2 * part.double() @ codes.T).argmin(1) for part in parts]
    return torch.cat(indices).view(rows.shape[:-1])


def perplexity(index: Tensor, num: int) -> float:
    """exp of the entropy of the shares of `num` classes: the number of equally used ones."""
    frequencies = torch.bincount(index.flatten().cpu(), minlength=num).double()
    return float(torch.special.entr(frequencies / frequencies.sum()).sum().exp())


def check_use(
    codebook_perplexity: float, parameter: str, num_tokens: int, remedy: str, *, loss: float = 0.0
) -> None:
    """Raises UserError where a tokenizer does not count: by its perplexity, or a loss that is not finite.

    Args:
        parameter: name of the one that sets the number of tokens.
        remedy: what to change.
    """
    min_perplexity = MIN_PERPLEXITY * num_tokens
    if not codebook_perplexity >= min_perplexity or not math.isfinite(loss):
        raise UserError(
            f"the tokenizer is below the gate: perplexity {codebook_perplexity:.1f} with {parameter} {num_tokens} "
            f"(loss {loss:.3g}); allowed: at least a quarter, {min_perplexity:g}; {remedy}"
        )


def k_means(rows: Tensor, num: int, parameter: str) -> tuple[Tensor, dict[str, float]]:
    """Rows (N, D) -> centres (K, D) float32 and how evenly the rows use them; raises as `centers` and `check_use`."""
    codebook = centers(rows, num, parameter)
    codebook_perplexity = perplexity(nearest(rows, codebook), num)
    check_use(codebook_perplexity, parameter, num, f"lower {parameter}")
    return codebook, {"codebook_perplexity": codebook_perplexity}
