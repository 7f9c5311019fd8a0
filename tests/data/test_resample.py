"""Batched resampling is Pillow's, bit for bit, on every device."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from skimage import data as photographs

from mim_bench.data import resample as module
from mim_bench.data.resample import resample

METHODS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def by_pillow(image, box, flip, size, interpolation):
    """One (C, H, W) image, written as one would with Pillow alone."""
    top, left, height, width = box
    planes = []
    for plane in image.numpy():
        cropped = Image.fromarray(plane).crop((left, top, left + width, top + height))
        across = cropped.resize((size[1], height), METHODS[interpolation])
        resized = across.resize((size[1], size[0]), METHODS[interpolation])
        planes.append(np.asarray(ImageOps.mirror(resized) if flip else resized))
    return torch.from_numpy(np.stack(planes))


@pytest.fixture(params=["pillow", *(f"dense-{device}" for device in DEVICES)])
def device(request, monkeypatch):
    """Each route: Pillow, and the dense products on each device."""
    route, _, name = request.param.partition("-")
    if route == "dense":
        monkeypatch.setattr(module, "_DENSE_DEVICES", (name,))
    return name or "cpu"


def draw_case(seed, num, channels, height, width):
    """Noise with flat areas (both extremes are reached, so clipping is) and boxes."""
    g = np.random.default_rng(seed)
    images = g.integers(0, 256, (num, channels, height, width), dtype=np.uint8)
    images[g.random(images.shape) < 0.3] = 255
    images[g.random(images.shape) < 0.3] = 0
    box_height = g.integers(1, height + 1, num)
    box_width = g.integers(1, width + 1, num)
    top, left = g.integers(0, height - box_height + 1), g.integers(0, width - box_width + 1)
    boxes = np.stack([top, left, box_height, box_width], axis=1)
    return torch.from_numpy(images), torch.from_numpy(boxes), torch.from_numpy(g.random(num) < 0.5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.sampled_from([1, 3, 5]),
    source=st.tuples(st.integers(1, 48), st.integers(1, 48)),
    size=st.tuples(st.integers(1, 48), st.integers(1, 48)),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
def test_dense__equals_pillow(seed, channels, source, size, interpolation):
    images, boxes, _ = draw_case(seed, 4, channels, *source)
    out = module._dense(images, boxes, size, interpolation)
    for i in range(len(images)):
        expected = by_pillow(images[i], boxes[i].tolist(), False, size, interpolation)
        assert torch.equal(out[i], expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(28, 28), (48, 20), (11, 60)])
def test_resample__equals_pillow_on_each_route(device, channels, size):
    images, boxes, flips = draw_case(1, 40, channels, 28, 36)
    boxes[0] = torch.tensor([0, 0, 28, 36])
    out = resample(images.to(device), boxes, flips, size).cpu()
    for i in range(len(images)):
        expected = by_pillow(images[i], boxes[i].tolist(), bool(flips[i]), size, "bicubic")
        assert torch.equal(out[i], expected)


def test_resample__photograph_down_to_112(device):
    picture = photographs.astronaut()[100:300, 150:350]
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].contiguous()
    boxes, flips = torch.tensor([[13, 20, 171, 180]]), torch.tensor([True])
    out = resample(image.to(device), boxes, flips, (112, 112)).cpu()
    assert torch.equal(out[0], by_pillow(image[0], boxes[0].tolist(), True, (112, 112), "bicubic"))


def test_resample__independent_of_batch_and_chunks(device, monkeypatch):
    images, boxes, flips = draw_case(2, 24, 3, 30, 30)
    images = images.to(device)
    whole = resample(images, boxes, flips, (30, 30))
    order = torch.arange(24).flip(0)
    turned = resample(images[order.to(device)], boxes[order], flips[order], (30, 30))
    assert torch.equal(turned.flip(0), whole)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
    assert torch.equal(resample(images, boxes, flips, (30, 30)), whole)


def test_resample__whole_boxes_return_the_images(device):
    images, _, _ = draw_case(3, 6, 3, 12, 9)
    boxes = torch.tensor([[0, 0, 12, 9]]).expand(6, 4)
    images = images.to(device)
    out = resample(images, boxes, torch.zeros(6, dtype=torch.bool), (12, 9))
    assert torch.equal(out, images) and out.data_ptr() != images.data_ptr()
    mirrored = resample(images, boxes, torch.ones(6, dtype=torch.bool), (12, 9))
    assert torch.equal(mirrored, images.flip(-1))


@pytest.mark.parametrize("size", [(32, 32), (48, 20), (60, 60)])
def test_resample__equals_one_call_where_height_grows(size):
    images, boxes, flips = draw_case(4, 60, 3, 32, 32)
    flips[:] = False
    out = resample(images, boxes, flips, size)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        image = Image.fromarray(images[i].permute(1, 2, 0).numpy())
        image = image.crop((left, top, left + width, top + height))
        expected = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
        assert np.array_equal(out[i].permute(1, 2, 0).numpy(), expected)


def test_weights__rows_are_integers_that_sum_to_one():
    for length, size in ((5, 28), (28, 5), (7, 7), (1, 4)):
        rows = module.weights(length, size)
        assert (rows == np.round(rows)).all()
        assert np.abs(rows.sum(axis=1) - 2**22).max() <= length
