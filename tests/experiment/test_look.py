"""The picture of attention, features and neighbours."""

import numpy as np
import pytest
import torch
from PIL import Image

from mim_bench.errors import UserError
from mim_bench.experiment import look as looking
from mim_bench.experiment.external import prepare
from mim_bench.experiment.look import look
from mim_bench.experiment.run import execute


@pytest.fixture
def run(small, tmp_path):
    """A finished run of seconds."""
    return execute(small("pixel", "evaluate.protocols=[]"), out=tmp_path / "runs").folder


def test_look__draws_with_and_without_neighbours(run, tmp_path):
    levels = np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    heights = []
    for name, options in (
        ("plain", {}), ("patch", {"patch": (1, 2)}), ("neighbours", {"data": "embedded", "num_neighbours": 2}),
    ):  # fmt: skip
        look(str(run), [tmp_path / "a.png"], tmp_path / f"{name}.png", **options)
        with Image.open(tmp_path / f"{name}.png") as picture:
            heights.append(picture.height)
    assert heights[0] < heights[1] < heights[2]


def test_nearest_neighbour__of_a_training_image_is_itself(run):
    ready = prepare(str(run), "tiny", ["data.limit_images=60", "evaluate.protocols=[]"])
    index = torch.tensor([5, 17])
    images = next(iter(ready.data.train.batches([index], ready.features.crop, device="cpu")))[0]
    (_, remark, tiles), *_ = looking._neighbours(ready, images, 3)
    torch.testing.assert_close(tiles[:, :1], images.float() / 255)
    assert remark == "cosine 1.00"


def test_look__refuses_in_one_line(run, tmp_path):
    Image.fromarray(np.eye(8, dtype=np.uint8) * 200).save(tmp_path / "a.png")
    for out, options, message in (
        ("x.jpg", {}, "the name of a .png file"),
        ("x.png", {"patch": (9, 9)}, "patch=9,9; allowed: 0,0 to 3,3"),
        ("x.png", {"data": "imbedded"}, "nearest: embedded"),
    ):
        with pytest.raises(UserError, match=message):
            look(str(run), [tmp_path / "a.png"], tmp_path / out, **options)
    assert not (tmp_path / "x.png").exists()
