"""The dispute in one picture: how alike encoders of different targets are, next to two seeds of one target; and
what an encoder knows of targets that it was not trained on.

Drawn from `similarity.csv` and `cross_prediction.csv` (`mim_bench.experiment.similarity`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from mim_bench.analysis.figures.color import text_on
from mim_bench.analysis.figures.panel import GREY, save, style
from mim_bench.errors import UserError
from mim_bench.records import png_stamp, swept
from mim_bench.records.store import benchmark_records, home


def draw_similarity(
    name: str, preset: str, results: Path, overrides: Sequence[str] = ()
) -> list[Path]:
    """`similarity.png`, `.svg` and `.pdf`, stamped with the pre-training runs of the records."""
    name, preset, overrides = swept.recall(name, preset, results, overrides)
    folder = home(name, preset, results)
    cka, r2 = (_read(folder / f"{stem}.csv") for stem in ("similarity", "cross_prediction"))
    entries = benchmark_records(name, preset, results, overrides)
    runs = png_stamp.of_runs(entry.record.run_hash for entry in entries if entry.record.pretrain)
    with style():
        return save(compose(cka, r2, preset), folder / "similarity", runs)


def compose(cka: pd.DataFrame, r2: pd.DataFrame, preset: str) -> Figure:
    """Two matrices; inside `panel.style()`."""
    rows = list(dict.fromkeys([*cka["row"], *cka["other"]]))
    figure = Figure(figsize=(8.2, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"How alike encoders are, preset {Path(preset).stem}", x=0.01, ha="left")
    _matrix(left, _cka(cka, rows), rows, rows, "linear CKA of two encoders' features")
    matrix = r2.pivot_table(index="row", columns="predicts", values="r2", sort=False)
    title = "R² of a linear map from tokens (rows) to targets"
    _matrix(right, matrix.to_numpy(), list(matrix.index), list(matrix.columns), title)
    seeds = cka[["seed", "other_seed"]].to_numpy()
    count = len(np.unique(seeds))
    note = f"Means over {count} seeds. On" if count > 1 else "One seed. On"
    note += " the diagonal at the left: two seeds of one target"
    has_other_seeds = len(cka.query("row == other")) > 0
    note += "." if has_other_seeds else " (not at hand)."
    figure.supxlabel(
        f"{note} Last rows at the right: nothing learned.",
        x=0.01,
        ha="left",
        fontsize=8,
        color=GREY,
    )
    return figure


def _cka(cka: pd.DataFrame, rows: list[str]) -> np.ndarray:
    """(R, R): different targets over all pairs of seeds, the same target over different seeds; nan without any."""
    symmetric = pd.concat([cka, cka.rename(columns={"row": "other", "other": "row"})])
    means = symmetric.pivot_table(index="row", columns="other", values="cka")
    return means.reindex(index=rows, columns=rows).to_numpy()


def _matrix(
    axes: Axes, values: np.ndarray, rows: list[str], columns: list[str], title: str
) -> None:
    shown = axes.imshow(np.clip(values, 0, 1), vmin=0, vmax=1, cmap="cividis", aspect="auto")
    axes.set_title(title, fontsize=8)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = text_on(to_hex(tuple(shown.to_rgba(value))))
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"no {path}; `similarity` makes it from finished runs")
    return pd.read_csv(path)
