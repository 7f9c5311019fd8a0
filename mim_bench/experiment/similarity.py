"""Similarity of the encoders of a benchmark, and how well each predicts every target: two small CSV files.

    python -m mim_bench similarity targets --preset small

`similarity.csv`: linear CKA of every two finished runs, at the declared readout; `cross_prediction.csv`: R^2 of a
linear map from each encoder's patch tokens to each target. Both on the first images of the test split, the same for
all; the maps are solved on training images. See `mim_bench.evaluate.similarity`.

Legend: N images, L patches, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from mim_bench.config.cells import Cell, cells
from mim_bench.data.run_data import Data, complete, open_data
from mim_bench.errors import UserError
from mim_bench.evaluate import features
from mim_bench.evaluate.context import Features, first_images
from mim_bench.evaluate.load_encoder import load_encoder
from mim_bench.evaluate.similarity import linear_cka, linear_r2
from mim_bench.files import write_text
from mim_bench.model.mae import build_encoder, compute_values
from mim_bench.model.vit import Encoder
from mim_bench.records import swept
from mim_bench.records.store import home
from mim_bench.target import Target
from mim_bench.targets.build import geometry
from mim_bench.train import environment
from mim_bench.train.fit import fitted_target
from mim_bench.train.gate import as_numbers

_CKA_IMAGES, _FIT_IMAGES, _HELD_IMAGES = 4000, 2000, 1000
_AT_ONCE = 500
RANDOM, PIXELS = "random weights", "pixels of the patch"
"""Rows that nothing was learned in, of the first seed."""


@dataclass(frozen=True)
class _Images:
    """Clean images, (N, C, H, W) uint8, the same for every encoder and target."""

    known: Tensor
    """Images of the training split on which linear maps are solved."""
    test: Tensor

    @property
    def held(self) -> Tensor:
        """Images of `test` on which maps are measured."""
        return self.test[:_HELD_IMAGES]


@dataclass(frozen=True)
class _Seen:
    """Features of the images under one encoder."""

    row: str
    seed: int
    pooled: Tensor
    """(N, D) of test images at the declared readout."""
    known: Tensor
    """(N * L, D) tokens of training images."""
    held: Tensor
    """(N * L, D) tokens of test images."""


def write_similarity(
    name: str, preset: str, *, out: Path, results: Path, overrides: Sequence[str] = ()
) -> list[Path]:
    """Compares the finished runs below `out`; returns the files that it wrote.

    Raises:
        UserError: fewer than two runs of the benchmark are finished.
    """
    name, preset, overrides = swept.recall(name, preset, results, overrides)
    grid_cells = cells(name, preset, overrides)
    device = environment.choose_device(grid_cells[0].config.runtime.device)
    data = open_data(grid_cells[0].config, device)
    runs = [(cell, folder) for cell in grid_cells if (folder := _finished(cell, data, out))]
    if len(runs) < 2:
        raise UserError(
            f"finished runs of {name} at {preset} below {out}: {len(runs)}; at least 2 are needed, "
            f"which `sweep {name} --preset {preset}` makes"
        )
    config = complete(grid_cells[0].config, data)
    images = _Images(
        known=first_images(config, data.train, _FIT_IMAGES, device),
        test=first_images(config, data.evaluate, _CKA_IMAGES, device),
    )
    encoders = [_encoded(cell, load_encoder(folder), data, images, device) for cell, folder in runs]
    cka_rows = [
        {"row": a.row, "seed": a.seed, "other": b.row, "other_seed": b.seed,
         "cka": linear_cka(a.pooled, b.pooled)}
        for index, a in enumerate(encoders)
        for b in encoders[index + 1 :]
    ]  # fmt: skip
    encoders += _untrained(runs[0][0], data, images, device)
    predicted = [
        {"row": encoder.row, "seed": encoder.seed, "predicts": name, "r2": r2}
        for seed in dict.fromkeys(encoder.seed for encoder in encoders)
        for name, r2, encoder in _predictions(encoders, seed, runs, data, images, out, device)
    ]
    folder = home(name, preset, results)
    paths = [folder / "similarity.csv", folder / "cross_prediction.csv"]
    for path, lines in zip(paths, (cka_rows, predicted), strict=True):
        write_text(path, pd.DataFrame(lines).round(6).to_csv(index=False))
    return paths


def _finished(cell: Cell, data: Data, out: Path) -> Path | None:
    folder = out / complete(cell.config, data).run_id
    return folder if (folder / "pretrain.json").is_file() else None


def _encoded(
    cell: Cell, encoder: Encoder, data: Data, images: _Images, device: torch.device, row: str = ""
) -> _Seen:
    config = complete(cell.config, data)
    frozen = Features(config, data, encoder.to(device), device)
    readout = features.READOUTS.index(config.evaluate.readout)

    def tokens(images: Tensor) -> Tensor:
        return _by_parts(lambda part: frozen.tokens(part)[:, 1:].float().flatten(0, 1), images)

    pooled = _by_parts(lambda part: frozen.encode(part)[:, readout], images.test)
    return _Seen(row or cell.label, config.seed, pooled, tokens(images.known), tokens(images.held))


def _untrained(cell: Cell, data: Data, images: _Images, device: torch.device) -> list[_Seen]:
    """The encoder at its initial weights, and the pixels of each patch themselves."""
    config = complete(cell.config, data)
    shape = geometry(config)
    random = build_encoder(config.model, shape, seed=config.seed)
    train_pixels, held_pixels = (
        shape.patchify(part.float() / 255).flatten(0, 1) for part in (images.known, images.held)
    )
    return [
        _encoded(cell, random, data, images, device, RANDOM),
        _Seen(PIXELS, config.seed, train_pixels, train_pixels, held_pixels),
    ]


def _predictions(
    encoders: Sequence[_Seen],
    seed: int,
    runs: Sequence[tuple[Cell, Path]],
    data: Data,
    images: _Images,
    out: Path,
    device: torch.device,
) -> list[tuple[str, float, _Seen]]:
    """Target, R^2 and encoder, of every encoder of a seed and every target of its runs that has values of its own."""
    predictions = []
    of_seed = {cell.config.target.name: cell for cell, _ in runs if cell.config.seed == seed}
    for name, cell in of_seed.items():
        target = fitted_target(complete(cell.config, data), data, out, device).target
        if target.follows_student:
            continue
        train_values, held_values = (_values(target, part) for part in (images.known, images.held))
        predictions += [
            (name, linear_r2(encoder.known, train_values, encoder.held, held_values), encoder)
            for encoder in encoders
            if encoder.seed == seed
        ]
    return predictions


def _values(target: Target, images: Tensor) -> Tensor:
    """(N * L, V)."""

    def numbers(part: Tensor) -> Tensor:
        return as_numbers(target, compute_values(target, part.float() / 255)).flatten(0, 1)

    return _by_parts(numbers, images)


def _by_parts(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([function(part) for part in images.split(_AT_ONCE)])
