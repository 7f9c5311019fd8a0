"""Splits: in memory and streamed give the same pixels, whatever the batches and workers."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from mim_bench.config.resolve import load_config
from mim_bench.data import run_data
from mim_bench.data.crop import Crop, EvalCrop
from mim_bench.data.image_set import ArraySet, Source, limit
from mim_bench.data.sources import open_source
from mim_bench.data.split import Split, load_split, normalisation
from mim_bench.errors import UserError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def darken(image: np.ndarray, index: int, *, epoch: int) -> np.ndarray:
    """A hook that depends on the image, its index and the epoch."""
    return image // (1 + (index + epoch) % 3)


@pytest.fixture(scope="module")
def embedded():
    return limit(open_source("embedded").train, 300)


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory) -> Path:
    """Photographs of different sizes, one of them grey, and not square."""
    folder = tmp_path_factory.mktemp("photos")
    pictures = [photographs.astronaut(), photographs.chelsea(), photographs.coffee()]
    for i, picture in enumerate([*pictures, photographs.camera()]):
        for j in range(4):
            part = picture[10 * j : 10 * j + 120 + 9 * i, 20 * j : 20 * j + 150 - 11 * i]
            Image.fromarray(part).save(folder / f"{i}{j}.jpg")
    return folder


@pytest.fixture(scope="module")
def colour():
    """Uniform, three channels, not square."""
    picture = photographs.astronaut()
    tiles = [picture[8 * i : 8 * i + 40, 9 * i : 9 * i + 56] for i in range(50)]
    return ArraySet(np.stack(tiles), np.arange(50) % 2, "tiles")


def collect(split, order, crop, **options):
    """Pixels in index order, (N, C, h, w)."""
    out: dict[int, torch.Tensor] = {}
    for images, index in split.batches(order, crop, device=DEVICE, **options):
        assert images.device.type == DEVICE and images.dtype == torch.uint8
        assert index.device.type == "cpu" and index.dtype == torch.int64
        out |= dict(zip(index.tolist(), images.cpu(), strict=True))
    return torch.stack([out[i] for i in sorted(out)])


@pytest.mark.parametrize("name", ["embedded", "colour"])
@pytest.mark.parametrize(
    "crop",
    [
        Crop(size=(28, 28)),
        Crop(size=(16, 40), mode="fixed_size"),
        Crop(size=(20, 24), mode="none", flip=1),
        EvalCrop(size=(24, 24), crop_fraction=0.875),
    ],
    ids=["random_size", "fixed_size", "none", "eval"],
)
def test_batches__streamed_equals_memory(request, name, crop):
    image_set = request.getfixturevalue(name)
    held = load_split(image_set, device=DEVICE)
    streamed = load_split(image_set, device=DEVICE, memory_gb=0)
    assert held.in_memory and not streamed.in_memory
    num = held.num_images
    whole = torch.arange(num).split(64)
    shuffled = torch.randperm(num, generator=torch.Generator().manual_seed(0)).split(17)
    first = collect(held, whole, crop, seed=1, epoch=2)
    assert first.shape == (num, held.num_channels, *crop.size)
    assert torch.equal(collect(held, shuffled, crop, seed=1, epoch=2), first)
    assert torch.equal(collect(streamed, shuffled, crop, seed=1, epoch=2), first)


def test_batches__workers_change_nothing(embedded):
    held = load_split(embedded, device=DEVICE)
    streamed = load_split(embedded, device=DEVICE, memory_gb=0)
    crop, order = Crop(size=(28, 28)), torch.arange(300).flip(0).split(37)
    state = torch.get_rng_state()
    for epoch in (0, 1):
        expected = collect(held, order, crop, seed=4, epoch=epoch)
        got = collect(streamed, order, crop, seed=4, epoch=epoch, num_workers=2)
        assert torch.equal(got, expected)
    assert torch.equal(torch.get_rng_state(), state)
    indices = [i for _, i in streamed.batches(order, crop, device=DEVICE, num_workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(indices, order, strict=True))


@pytest.mark.parametrize("memory_gb", [8, 0])
def test_batches__hook_is_the_same_with_workers(colour, memory_gb):
    split = load_split(colour, device=DEVICE, memory_gb=memory_gb)
    crop, order = Crop(size=(32, 32)), torch.arange(50).split(20)
    plain = collect(split, order, crop, seed=0, epoch=1)
    hook = functools.partial(darken, epoch=1)
    expected = torch.stack([image // (1 + (i + 1) % 3) for i, image in enumerate(plain)])
    for num_workers in (0, 2):
        got = collect(split, order, crop, epoch=1, per_image=hook, num_workers=num_workers)
        assert torch.equal(got, expected)


def test_batches__left_half_way_and_started_again(embedded):
    split = load_split(embedded, device=DEVICE, memory_gb=0)
    crop, order = Crop(size=(28, 28)), torch.arange(300).split(30)
    expected = collect(split, order, crop, num_workers=2)
    for _ in split.batches(order, crop, device=DEVICE, num_workers=2):
        break
    assert torch.equal(collect(split, order, crop, num_workers=2), expected)


def test_batches__hook_that_cannot_travel_is_an_error(colour):
    split = load_split(colour, device=DEVICE)
    order = torch.arange(50).split(20)
    with pytest.raises(Exception, match="pickle"):
        collect(split, order, Crop(size=(8, 8)), per_image=lambda x, i: x, num_workers=1)


def test_load_split__photographs_of_many_sizes_are_streamed(photo_folder):
    split = load_split(open_source(f"folder:{photo_folder}").train, device=DEVICE)
    assert split.image_size is None and not split.in_memory
    assert (split.num_channels, split.labels) == (3, None)
    for crop in (Crop(size=(64, 64)), EvalCrop(size=(48, 80))):
        order = torch.arange(split.num_images).split(4)
        alone = collect(split, torch.arange(split.num_images).split(1), crop, seed=2, epoch=3)
        assert torch.equal(collect(split, order, crop, seed=2, epoch=3), alone)


def test_load_split__one_odd_size_among_many_is_streamed():
    class Odd(ArraySet):
        def decode(self, i):
            return self.images[i][:20] if i == 1 else self.images[i]

    levels = np.arange(200, dtype=np.uint8)[:, None, None]
    images = np.broadcast_to(levels, (200, 24, 24))
    split = load_split(Odd(images, None, "odd"), device="cpu")
    assert split.image_size is None and not split.in_memory


def test_load_split__facts(embedded):
    split = load_split(embedded, device=DEVICE, name="train")
    assert (split.num_images, split.num_channels, split.image_size) == (300, 1, (28, 28))
    assert split.labels is not None and split.labels.dtype == torch.int64
    assert split.labels.bincount().tolist() == [30] * 10
    assert split.fingerprint == embedded.fingerprint()
    assert np.array_equal(split.read(7), embedded.read(7))


def _broken_folder(root: Path, num: int, bad: int) -> Path:
    for i in range(num):
        Image.fromarray(photographs.coins()[i : i + 20, :20]).save(root / f"{i:03d}.png")
    path = root / f"{bad:03d}.png"
    path.write_bytes(path.read_bytes()[:60])
    return path


@pytest.mark.parametrize(("memory_gb", "num_workers"), [(8, 0), (0, 0), (0, 2)])
def test_broken_image__is_named_in_one_line(tmp_path, memory_gb, num_workers):
    path = _broken_folder(tmp_path, 200, 1)  # not among the images that are looked at on opening
    source = open_source(f"folder:{tmp_path}")
    assert source.train.locate(1) == str(path)
    with pytest.raises(UserError) as error:
        split = load_split(source.train, device="cpu", memory_gb=memory_gb)
        order = torch.arange(split.num_images).split(50)
        collect(split, order, Crop(size=(20, 20)), num_workers=num_workers)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_load_split__refuses_an_empty_set():
    with pytest.raises(UserError, match="train: no images"):
        load_split(
            ArraySet(np.zeros((0, 4, 4), np.uint8), None, "none"), device="cpu", name="train"
        )


def test_normalisation__equals_numpy_and_ignores_where_the_data_is(colour):
    held, streamed = (load_split(colour, device=DEVICE, memory_gb=gb) for gb in (8, 0))
    mean, std = normalisation(held)
    assert normalisation(streamed) == (mean, std)
    levels = colour.images.astype(np.float64) / 255
    assert mean == pytest.approx(levels.mean(axis=(0, 1, 2)), abs=5.1e-5)
    assert std == pytest.approx(levels.std(axis=(0, 1, 2)), abs=5.1e-5)


def test_normalisation__constants_and_constant_images():
    flat = ArraySet(np.full((4, 6, 6), 51, np.uint8), None, "flat")
    split = Split(flat, name="flat", image_size=(6, 6), num_channels=1, pixels=None)
    assert normalisation(split) == ((0.2,), (round(1 / 255, 4),))
    source = Source("x", flat, flat, None, "", ((0.5,), (0.25,)))
    assert normalisation(split, source) == ((0.5,), (0.25,))


@pytest.mark.parametrize(
    ("given", "needed", "expected"), [("3", False, 3), ("none", False, 0), ("none", True, 2)]
)
def test_workers__are_as_many_as_given_else_one_a_core_where_they_are_needed(
    monkeypatch, given, needed, expected
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    config = load_config("pixel", "tiny", [f"runtime.num_workers={given}"])
    assert run_data._num_workers(config, is_needed=needed) == expected
