"""Every target of a benchmark on the same images, under the same masks: target and prediction.

One row an image, one pair of columns a target; see `mim_bench.evaluate.reconstruction` for a single run.
The PNG is stamped with the runs that it shows (see `png_stamp`).
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from mim_bench.config.cells import Cell, cells
from mim_bench.data.run_data import complete, open_data
from mim_bench.errors import UserError
from mim_bench.evaluate import picture
from mim_bench.evaluate.reconstruction import Sample, possible_ratios, reopen
from mim_bench.records import png_stamp, swept
from mim_bench.records.finished import pictured
from mim_bench.records.store import home
from mim_bench.target import to_rgb
from mim_bench.targets.build import geometry
from mim_bench.train import environment

_NUM_ROWS, _MIN_TILE = 4, 96
_LEFT, _TOP, _BOTTOM, _LINE = 12, 58, 20, 17
_LETTER = 7.65  # pixels of a letter of the note, on average


def draw_gallery(
    name: str, preset: str, *, out: Path, results: Path, overrides: Sequence[str] = ()
) -> list[Path]:
    """Draws the finished runs of the benchmark's first seed next to its records.

    `pictures.png`: a few images under the mask that was trained with; `ratios.png`: one image, a frame for each tenth
    of patches hidden.

    Raises:
        UserError: a run is missing.
    """
    device = environment.choose_device("cpu")
    samples: dict[str, list[Sample]] = {}
    hashes: list[str] = []
    name, preset, overrides = swept.recall(name, preset, results, overrides)
    grid_cells = cells(name, preset, overrides)
    data = open_data(grid_cells[0].config, device)
    first = complete(grid_cells[0].config, data)
    grid, ratios = geometry(first).grid, possible_ratios(first)
    for cell in pictured(grid_cells):
        config = complete(cell.config, data)
        hashes.append(config.hash)
        folder = out / config.run_id
        if not (folder / "model.safetensors").is_file():
            raise UserError(f"no finished run {folder}; `sweep {name} --preset {preset}` makes it")
        samples[config.target.name] = reopen(folder, device, ratios)[1]
    folder, stamp = home(name, preset, results), png_stamp.metadata(png_stamp.of_runs(hashes))
    main_samples, *others = [
        dict(zip(samples, column, strict=True)) for column in zip(*samples.values(), strict=True)
    ]
    picture.write(_compose(main_samples, grid, _remark(grid_cells)), folder / "pictures.png", stamp)
    frames = {}
    for at_ratio in others:
        hidden = f"{next(iter(at_ratio.values())).mask.float().mean():.0%} hidden"
        remark = f"Mask: {first.mask.sampling}, {hidden}; trained at {first.mask.ratio:.0%}. "
        frames[hidden] = _compose(at_ratio, grid, remark, num_rows=1)
    if frames:
        picture.write_frames(frames, folder / "ratios.png", stamp)
    return [folder / "pictures.png", *[folder / "ratios.png"] * bool(frames)]


def _remark(grid_cells: Sequence[Cell]) -> str:
    """Remark on the rows that are shown, and on their mask."""
    first, labels = grid_cells[0].config.mask, [cell.label for cell in pictured(grid_cells)]
    listed = (
        ""
        if labels == [cell.config.target.name for cell in pictured(grid_cells)]
        else "; ".join(labels)
    )
    return f"Mask: {first.sampling}, {first.ratio:g} hidden. " + f"Rows: {listed}. " * bool(listed)


def _compose(
    samples: dict[str, Sample], grid: tuple[int, int], remark: str, num_rows: int = _NUM_ROWS
) -> Figure:
    first = next(iter(samples.values()))
    width = math.lcm(*(sample.target.shape[-1] for sample in samples.values()))
    width *= math.ceil(_MIN_TILE / width)  # headings have room
    images = picture.enlarge(to_rgb(first.images[:num_rows]), width)
    mask = first.mask[:num_rows].view(-1, 1, *grid).float()
    covered = picture.enlarge(mask, width) > 0.5
    columns = [
        ("", "image", images),
        ("", "input", torch.where(covered, picture.HIDDEN_GREY, images)),
    ]
    for target, sample in samples.items():
        values, prediction = (
            picture.enlarge(tiles[:num_rows], width) for tiles in (sample.target, sample.prediction)
        )
        star = " *" if sample.ground_truth else ""
        columns.append((target + star, "target", values))
        columns.append(("", "prediction", torch.where(covered, prediction, values)))
    height = images.shape[2]
    sheet_width = 2 * _LEFT + len(columns) * (width + picture.GAP) - picture.GAP
    note = remark + "Visible patches of `prediction` show the target."
    if any(sample.ground_truth for sample in samples.values()):
        note += " * drawn with the true patches' mean and std, which the model did not predict."
    lines = textwrap.wrap(note, int((sheet_width - 2 * _LEFT) / _LETTER))
    bottom = _BOTTOM + _LINE * len(lines)
    sheet_height = _TOP + num_rows * (height + picture.GAP) + bottom
    rows = [torch.stack([tiles[row] for _, _, tiles in columns]) for row in range(num_rows)]
    figure = picture.lay_out(rows, sheet_width, sheet_height, left=_LEFT, top=_TOP)
    for column_index, (target, heading, _) in enumerate(columns):
        x = _LEFT + column_index * (width + picture.GAP)
        picture.text(figure, x, 1 - 18 / sheet_height, target, size=15, weight="bold")
        picture.text(figure, x, 1 - 42 / sheet_height, heading, size=12)
    for line_index, line in enumerate(lines):
        picture.text(
            figure, _LEFT, (bottom - _LINE * (line_index + 1)) / sheet_height, line, size=11
        )
    return figure
