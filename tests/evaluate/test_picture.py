"""The picture grid: every tile where it belongs, pixel for pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import Tensor

from mim_bench.errors import UserError
from mim_bench.evaluate.picture import grid_figure, write
from mim_bench.target import Geometry

GEOMETRY = Geometry((32, 64), 16, 1, (0.5,), (0.25,))
GREY = round(0.62 * 255)


def inputs(num: int = 8, scale: int = 1, geometry: Geometry = GEOMETRY) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    height, width = geometry.image_size
    big = (num, 3, height * scale, width * scale)
    return {
        "images": torch.rand(num, geometry.in_chans, height, width, generator=generator),
        "mask": torch.rand(num, geometry.num_patches, generator=generator) < 0.5,
        "target": torch.rand(big, generator=generator),
        "prediction": torch.rand(big, generator=generator),
    }


def draw(path: Path, given: dict[str, Tensor], *, ground_truth: bool = False) -> np.ndarray:
    """Draws, reads back -> (height, width, 3) uint8."""
    figure = grid_figure(
        target_name="hog",
        geometry=GEOMETRY,
        ground_truth=ground_truth,
        title="hog, seed 0",
        **given,  # pyright: ignore[reportArgumentType]
    )
    write(figure, path)
    return np.asarray(Image.open(path).convert("RGB"))


def levels(images: Tensor, height: int) -> np.ndarray:
    """(N, C, h, w) -> (N, height, ..., 3) uint8 with repeated pixels."""
    factor = height // images.shape[2]
    big = images.expand(-1, 3, -1, -1).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return (big.permute(0, 2, 3, 1) * 255).round().byte().numpy()


def tiles(sheet: np.ndarray, row: int, height: int, num: int = 8) -> np.ndarray:
    """(N, height, 2*height, 3): a row's tiles, at the margins and gaps of the layout."""
    top = 44 + row * (height + 6)
    lefts = [132 + column * (2 * height + 6) for column in range(num)]
    return np.stack([sheet[top : top + height, left : left + 2 * height] for left in lefts])


@pytest.mark.parametrize(("scale", "height"), [(1, 128), (2, 128), (5, 160)])
def test_grid_figure__shows_four_rows_pixel_for_pixel(
    tmp_path: Path, scale: int, height: int
) -> None:
    given = inputs(scale=scale)
    sheet = draw(tmp_path / "a.png", given)
    hidden = levels(given["mask"].view(8, 1, 2, 4).float(), height) > 0
    image, target = levels(given["images"], height), levels(given["target"], height)
    prediction = levels(given["prediction"], height)
    expected = (image, np.where(hidden, GREY, image), target, np.where(hidden, prediction, target))
    for row, row_expected in enumerate(expected):
        np.testing.assert_array_equal(tiles(sheet, row, height), row_expected)


def test_grid_figure__names_its_rows_and_title(tmp_path: Path) -> None:
    sheet = draw(tmp_path / "a.png", inputs())
    assert sheet[:44, 132:].min() < 100
    for row in range(4):
        top = 44 + row * (128 + 6)
        assert sheet[top : top + 128, :120].min() < 100


def test_grid_figure__says_when_ground_truth_was_used(tmp_path: Path) -> None:
    given = inputs()
    last = 44 + 4 * (128 + 6)
    assert draw(tmp_path / "with.png", given, ground_truth=True)[last:].min() < 150
    assert draw(tmp_path / "without.png", given)[last:].min() == 255


def test_grid_figure__keeps_the_text_inside_with_one_image(tmp_path: Path) -> None:
    sheet = draw(tmp_path / "a.png", inputs(num=1), ground_truth=True)
    edge = np.concatenate([sheet[:, -8:].reshape(-1, 3), sheet[:, :4].reshape(-1, 3)])
    assert edge.min() == 255


def test_grid_figure__makes_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    draw(tmp_path / "new" / "a.png", inputs())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_grid_figure__keeps_the_old_file_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full(self: FigureCanvasAgg, target: Path, **options: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(FigureCanvasAgg, "print_png", full)
    with pytest.raises(UserError, match="No space"):
        draw(path, inputs())
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("a.png", b"old")]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("images", torch.rand(8, 1, 32, 32)),
        ("mask", torch.ones(8, 9).bool()),
        ("target", torch.rand(8, 3, 32, 60)),
        ("prediction", torch.rand(8, 3, 64, 128)),
    ],
)
def test_grid_figure__refuses_shapes_that_do_not_belong(
    tmp_path: Path, name: str, wrong: Tensor
) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        draw(tmp_path / "a.png", inputs() | {name: wrong})
    assert not list(tmp_path.iterdir())
