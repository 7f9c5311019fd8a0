"""Every target of a benchmark on the same images, under the same masks: what is asked, what is answered.

One row an image, one pair of columns a target; see `mim_bench.picture` for a single run.
"""

import math
from pathlib import Path

import torch

from mim_bench import environment, picture
from mim_bench.benchmark import cells
from mim_bench.dataset import complete, open_data
from mim_bench.error import UserError
from mim_bench.resolve import geometry
from mim_bench.sample import Sample, reopen
from mim_bench.store import home
from mim_bench.target import to_rgb

_NUM_ROWS = 4
_LEFT, _TOP, _BOTTOM = 12, 58, 40


def draw_gallery(name: str, preset: str, *, out: Path, results: Path) -> Path:
    """Draws the finished runs of the benchmark's first seed -> `<results>/<name>/<preset>/pictures.png`.

    Raises:
        UserError: a run is missing.
    """
    device = environment.choose_device("cpu")
    samples: dict[str, Sample] = {}
    todo = cells(name, preset)
    data = open_data(todo[0].config, device)
    grid = geometry(complete(todo[0].config, data)).grid
    for cell in todo:
        config = complete(cell.config, data)
        if config.seed != todo[0].config.seed or config.target.name in samples:
            continue
        folder = out / config.run_id
        if not (folder / "model.safetensors").is_file():
            raise UserError(f"no finished run {folder}; `sweep {name} --preset {preset}` makes it")
        samples[config.target.name] = reopen(folder, device)[1]
    path = home(name, preset, results) / "pictures.png"
    _compose(path, samples, grid)
    return path


def has_runs(name: str, preset: str, out: Path) -> bool:
    """True if the benchmark compares targets and a finished run of each lies below `out`."""
    targets = {cell.config.target.name for cell in cells(name, preset) if "target" in cell.place}
    return len(targets) > 1 and all(
        list(out.glob(f"{target}-{Path(preset).stem}-s*/model.safetensors")) for target in targets
    )


def _compose(path: Path, samples: dict[str, Sample], grid: tuple[int, int]) -> None:
    first = next(iter(samples.values()))
    width = math.lcm(*(found.asked.shape[-1] for found in samples.values()))
    images = picture.enlarge(to_rgb(first.images[:_NUM_ROWS]), width)
    mask = first.mask[:_NUM_ROWS].view(-1, 1, *grid).float()
    covered = picture.enlarge(mask, width) > 0.5
    columns = [
        ("", "image", images),
        ("", "input", torch.where(covered, picture.HIDDEN_GREY, images)),
    ]
    for target, found in samples.items():
        asked, answered = (
            picture.enlarge(tiles[:_NUM_ROWS], width) for tiles in (found.asked, found.answered)
        )
        star = " *" if found.ground_truth else ""
        columns.append((target + star, "asked", asked))
        columns.append(("", "answered", torch.where(covered, answered, asked)))
    height = images.shape[2]
    sheet_width = 2 * _LEFT + len(columns) * (width + picture.GAP) - picture.GAP
    sheet_height = _TOP + _NUM_ROWS * (height + picture.GAP) + _BOTTOM
    rows = [torch.stack([tiles[row] for _, _, tiles in columns]) for row in range(_NUM_ROWS)]
    figure = picture.lay_out(rows, sheet_width, sheet_height, left=_LEFT, top=_TOP)
    for place, (target, heading, _) in enumerate(columns):
        x = _LEFT + place * (width + picture.GAP)
        picture.text(figure, x, 1 - 18 / sheet_height, target, size=15, weight="bold")
        picture.text(figure, x, 1 - 42 / sheet_height, heading, size=12)
    note = "Visible patches of `answered` show what was asked."
    if any(found.ground_truth for found in samples.values()):
        note += " * drawn with the true patches' mean and std, which the model did not predict."
    picture.text(figure, _LEFT, _BOTTOM / 2 / sheet_height, note, size=11)
    picture.write(figure, path)
