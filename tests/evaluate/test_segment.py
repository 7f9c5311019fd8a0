"""Linear segmentation: mean IoU by its definition, and the same numbers from every kind of source."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SMALL
from PIL import Image

from mim_bench.analysis import render
from mim_bench.analysis import table as tables
from mim_bench.data.masks import IGNORED, open_masked
from mim_bench.errors import UserError
from mim_bench.evaluate.segment import confusions, mean_iou, patch_shares
from mim_bench.experiment.run import execute
from mim_bench.experiment.sweep import sweep
from mim_bench.records.measure import measures


def test_mean_iou__is_intersection_over_union_of_the_classes_that_occur():
    generator = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(3, (5, 8, 8), generator=generator) for _ in range(2))
    truth[0, :2] = IGNORED
    keep = truth != IGNORED
    want = []
    for k in range(3):
        a, b = (truth == k) & keep, (predicted == k) & keep
        want.append(float((a & b).sum() / (a | b).sum()))
    value, error = mean_iou(confusions(truth, predicted, 4))  # the fourth occurs nowhere
    assert value == pytest.approx(np.mean(want)) and 0 < error < 0.1
    assert mean_iou(confusions(truth, torch.where(keep, truth, 0), 4))[0] == 1


def test_patch_shares__count_the_pixels_of_each_patch():
    masks = torch.zeros(1, 4, 6, dtype=torch.int64)
    masks[0, :2, :2] = 1
    masks[0, 0, 0] = IGNORED
    masks[0, 2:, 4:] = IGNORED
    shares = patch_shares(masks, (2, 3), 2)
    torch.testing.assert_close(shares[0, 0], torch.tensor([0, 1.0]).double())
    torch.testing.assert_close(shares[0, 1], torch.tensor([1.0, 0]).double())
    assert shares[0, 5].sum() == 0  # nothing but ignored pixels


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Twelve scenes a split as folders and as Parquet: the package's own images and their silhouettes."""
    path = tmp_path_factory.mktemp("scenes")
    for split, images in zip(("train", "test"), open_masked("scenes"), strict=True):
        rows = {"image": [], "mask": []}
        for i in range(12):
            for kind, pixels in (("image", images.image(i)[:, :, 0]), ("mask", images.mask(i))):
                place = path / "folder" / split / f"{kind}s" / f"{i:02d}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(pixels)
                if kind == "mask" and i % 2:  # a palette's colours are of no matter
                    picture = picture.convert("P")
                    picture.putdata(pixels.flatten().tolist())
                picture.save(place)
                file = io.BytesIO()
                picture.save(file, "PNG")
                rows[kind].append({"bytes": file.getvalue(), "path": place.name})
        (path / "parquet").mkdir(exist_ok=True)
        pq.write_table(pa.table(rows), path / "parquet" / f"{split}-0000.parquet")
    return path


def test_sources__hold_the_same_images_and_masks(scenes):
    own = open_masked("scenes")
    for source in (f"folder:{scenes / 'folder'}", f"parquet:{scenes / 'parquet'}"):
        for images, want in zip(open_masked(source), own, strict=True):
            assert len(images) == 12
            for i in range(12):
                np.testing.assert_array_equal(images.image(i), want.image(i))
                np.testing.assert_array_equal(images.mask(i), want.mask(i))
    masks = np.stack([own[0].mask(i) for i in range(100)])
    assert set(np.unique(masks)) == set(range(11))


def test_segment__records_encoder_and_raw_pixels_with_their_errors(scenes, small, tmp_path):
    few = [
        "segment.max_train_images=12",
        "segment.max_test_images=12",
        "evaluate.protocols=segment",
    ]
    found = []
    for source in ("scenes", f"folder:{scenes / 'folder'}", f"parquet:{scenes / 'parquet'}"):
        config = small("pixel", *few, f"segment.source={source}")
        result = execute(config, out=tmp_path / source.partition(":")[0])
        found.append(result.records[0])
    named = measures(found[0])
    assert list(named) == ["segment", "segment @ pixels/patches"]
    for metric in found[0].metrics:
        assert (
            metric.name == "miou"
            and 0 < metric.value < 1
            and 0 < metric.stderr < 0.2
            and metric.n == 12
        )
    assert found[0].metrics == found[1].metrics == found[2].metrics
    assert "12 training and 12 test images, 11 classes" in found[0].notes[0]
    of_encoder, of_pixels = found[0].control
    assert of_pixels == found[0].metrics[1] and of_encoder.readout == "last/patches"


def test_table__has_a_column_of_mean_iou_with_raw_pixels_and_random_weights(small, tmp_path):
    benchmark = tmp_path / "dense.toml"
    benchmark.write_text(
        """
        title = "Dense"
        description = "mean IoU"
        rebuilds = "nothing"
        claim = "None."
        protocols = ["segment"]
        seeds = [0]
        reference = "pixel"
        grid.target = ["pixel", "hog"]
        """
    )
    few = [
        *SMALL,
        "segment.max_train_images=12",
        "segment.max_test_images=12",
        "segment.source=scenes",
    ]
    places = {"out": tmp_path / "runs", "results": tmp_path / "results"}
    assert not sweep(str(benchmark), "tiny", overrides=few, **places)
    made = tables.build(str(benchmark), "tiny", tmp_path / "results")
    assert "mIoU %" in render.main_grid(made).headings
    record = made.records[0]
    of_row = {row.label: row.values["segment"].mean for row in made.rows}
    assert of_row["pixel"] == record.metrics[0].value
    assert of_row["raw pixels"] == record.metrics[1].value
    assert of_row["random weights (control)"] == record.control[0].value


def test_features_that_know_the_class__segment_perfectly(monkeypatch, small, tmp_path):
    from mim_bench.evaluate import segment
    from mim_bench.evaluate.context import Features

    class Halves:
        """The left half of an image is class 1 or 2, and so bright; the right is background."""

        def __len__(self):
            return 20

        def image(self, i):
            levels = np.zeros((32, 32, 1), dtype=np.uint8)
            levels[:, :16] = 120 * (1 + i % 2)
            return levels

        def mask(self, i):
            return self.image(i)[:, :, 0] // 120

    monkeypatch.setattr(segment, "open_masked", lambda source: (Halves(), Halves()))

    def patches(self, images, layer):
        corners = images[:, :, ::8, ::8].flatten(2).mT
        return torch.cat([corners == level for level in (0, 120, 240)], dim=2).float()

    monkeypatch.setattr(Features, "patches", patches)
    record = execute(
        small("pixel", "evaluate.protocols=segment", "segment.c=10"), out=tmp_path
    ).records[0]
    assert record.metrics[0].value > 0.9  # bilinear interpolation blurs the border of the halves


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ade20k", "segment.source=ade20k: allowed: scenes, folder:PATH, parquet:PATH"),
        ("folder:nowhere", "no such folder"),
        ("folder:{}/empty", "needed are train and one of test"),
        ("folder:{}/lonely", "01.png has no mask of the same stem"),
        ("parquet:{}/columns", "no columns image and mask"),
    ],
)
def test_wrong_sources__are_one_line(tmp_path, source, message):
    for name in (
        "empty",
        "lonely/train/images",
        "lonely/train/masks",
        "lonely/test/images",
        "lonely/test/masks",
    ):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "lonely" / "train" / "images" / "01.png").touch()
    (tmp_path / "columns").mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({"img": [b""]}), tmp_path / "columns" / f"{split}.parquet")
    with pytest.raises(UserError, match=message) as error:
        open_masked(source.format(tmp_path))
    assert "\n" not in str(error.value)


def test_wrong_masks__are_one_line(tmp_path):
    for kind, pixels in (
        ("images", np.zeros((8, 8, 3), np.uint8)),
        ("masks", np.zeros((8, 8, 3), np.uint8)),
    ):
        for split in ("train", "test"):
            (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / split / kind / "1.png")
    train, _ = open_masked(f"folder:{tmp_path}")
    with pytest.raises(UserError, match="mask of mode RGB; needed are class indices"):
        train.mask(0)
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(tmp_path / "train" / "masks" / "1.png")
    with pytest.raises(UserError, match=r"mask of \(4, 8\), its image is \(8, 8\)"):
        train.mask(0)
