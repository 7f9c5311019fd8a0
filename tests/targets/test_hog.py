"""HOG against the official layer's numbers, scikit-image, and a plain loop over pixels."""

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from skimage.feature import hog as skimage_hog
from torch import Tensor
from torch.nn import functional as F

from mim_bench.config.target_params import HogParams
from mim_bench.errors import UserError
from mim_bench.target import Geometry, TargetContext
from mim_bench.targets.hog import HogTarget, sobel

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "hog.npz")


def build(size: tuple[int, int], patch: int, chans: int, **params: object) -> HogTarget:
    stats = (0.5,) * chans
    geometry = Geometry(size, patch, chans, stats, stats)
    return HogTarget(HogParams.model_validate(params), TargetContext(geometry))


def photos(name: str, num: int) -> Tensor:
    return torch.from_numpy(GOLDEN[name][:num]).permute(0, 3, 1, 2).float() / 255


def noise(num: int, chans: int, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, chans, *size), generator=generator).float() / 255


@pytest.mark.parametrize(
    ("array", "source", "patch", "params"),
    [
        ("imagenet_target_int", "imagenet_u8", 16, {}),
        ("imagenet_target_int_gw16_first4", "imagenet_u8", 16, {"gaussian_window": 16}),
        ("cifar_target_int_patch16_pool8_first8", "cifar_u8", 16, {}),
        ("cifar_target_int_patch8_pool4_first8", "cifar_u8", 8, {}),
        ("cifar_target_int_patch4_pool4_first8", "cifar_u8", 4, {"cells_per_side": 1}),
        ("cifar_target_int_patch4_pool2_first8", "cifar_u8", 4, {}),
    ],
)
def test_hog__equals_official_layer(
    array: str, source: str, patch: int, params: dict[str, int]
) -> None:
    expected = torch.from_numpy(GOLDEN[array])
    images = photos(source, len(expected))
    values = build((images.shape[2], images.shape[3]), patch, 3, **params)(images)
    torch.testing.assert_close(values, expected, atol=1e-6, rtol=0)


def test_loss__equals_official_loss() -> None:
    """Predictions by the recipe of the fixtures: 0.25 + 0.25 u("maskfeat_pred", i)."""
    shape = GOLDEN["imagenet_target_int"].shape
    with np.errstate(over="ignore"):
        z = np.arange(math.prod(shape), dtype=np.uint64)
        z += np.uint64(zlib.crc32(b"maskfeat_pred") << 32) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    uniform = (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    prediction = torch.from_numpy((0.25 + 0.25 * uniform).astype(np.float32).reshape(shape))
    target = build((224, 224), 16, 3)
    loss = target.loss(prediction, target(photos("imagenet_u8", 8)))
    hidden = torch.from_numpy(GOLDEN["loss_masks"]).bool().flatten(1)
    expected = torch.tensor(float(GOLDEN["loss_int"]))
    torch.testing.assert_close(loss[hidden].mean(), expected, atol=1e-7, rtol=0)


def plain_hog(image: np.ndarray, patch: int, bins: int, cells: int) -> np.ndarray:
    """(C, H, W) of integers -> (L, C*bins*cells*cells), one pixel after the other in float64."""
    chans, height, width = image.shape
    side = patch // cells
    sums = np.zeros((height // patch, width // patch, chans, bins, cells, cells))
    kernel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    for c in range(chans):
        padded = np.pad(image[c].astype(int), 1, mode="reflect")
        for y in range(height):
            for x in range(width):
                window = padded[y : y + 3, x : x + 3]
                gx, gy = int((window * kernel).sum()), int((window * kernel.T).sum())
                bin_ = math.floor(math.atan2(gx, gy) / math.pi * bins) % bins
                place = (y // patch, x // patch, c, bin_, y % patch // side, x % patch // side)
                sums[place] += math.hypot(gx, gy)
    sums /= np.maximum(np.sqrt((sums**2).sum(axis=3, keepdims=True)), 1e-12)
    return sums.reshape(-1, chans * bins * cells * cells)


@pytest.mark.parametrize(
    ("size", "patch", "chans", "bins", "cells"),
    [((6, 12), 6, 2, 9, 2), ((15, 10), 5, 1, 9, 1), ((9, 18), 9, 4, 6, 3), ((8, 4), 4, 1, 12, 4)],
)
def test_hog__equals_a_plain_loop_at_any_size(
    size: tuple[int, int], patch: int, chans: int, bins: int, cells: int
) -> None:
    target = build(size, patch, chans, num_bins=bins, cells_per_side=cells)
    images = noise(2, chans, size)
    values = target(images)
    assert values.shape == (2, size[0] * size[1] // patch**2, target.dim)
    for value, image in zip(values.numpy(), (images * 255).round().int().numpy(), strict=True):
        np.testing.assert_allclose(value, plain_hog(image, patch, bins, cells), atol=1e-6)


@pytest.mark.parametrize(("num_bins", "reach"), [(9, 1020), (4, 60), (8, 60), (12, 60), (2, 60)])
def test_bins__equal_the_angle_in_float64(num_bins: int, reach: int) -> None:
    """1020 is the largest Sobel gradient of 8-bit levels: for 9 bins, every gradient there is."""
    gx, gy = torch.meshgrid(*[torch.arange(-reach, reach + 1.0)] * 2, indexing="ij")
    angle = torch.atan2(gx.double(), gy.double())
    expected = (angle / math.pi * num_bins).floor_().remainder_(num_bins).long()
    actual = build((4, 4), 4, 1, num_bins=num_bins).bins(gx, gy)
    wrong = (actual != expected) & ((gx != 0) | (gy != 0))
    assert int(wrong.sum()) == 0


def as_grey(images_u8: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) u8 -> (N, H, W) u8 as Pillow's "L"."""
    red, green, blue = (images_u8[..., i].astype(np.int64) for i in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)


def skimage_reference(grey: np.ndarray) -> Tensor:
    """(H, W) -> (cells, 9). Its angle starts at the other axis, hence the transposed image."""
    cells = skimage_hog(grey.T, 9, (8, 8), (1, 1), "L2", feature_vector=False)
    return torch.from_numpy(cells[:, :, 0, 0].transpose(1, 0, 2).reshape(-1, 9)).float()


def test_hog__equals_skimage_on_central_differences() -> None:
    target = build((224, 224), 8, 1, cells_per_side=1)
    for grey in as_grey(GOLDEN["imagenet_u8"][:3]):
        levels = torch.from_numpy(grey).float()[None, None]
        gx = F.pad(levels[..., :-2] - levels[..., 2:], (1, 1, 0, 0))
        gy = F.pad(levels[..., :-2, :] - levels[..., 2:, :], (0, 0, 1, 1))
        expected = skimage_reference(grey)
        torch.testing.assert_close(target.histogram(gx, gy)[0], expected, atol=1e-6, rtol=0)


def test_hog__is_close_to_skimage_with_sobel() -> None:
    """Sobel against central differences: cosine 0.93 on average, at most 0.85 with the axes swapped."""
    target = build((224, 224), 8, 1, cells_per_side=1)
    greys = as_grey(GOLDEN["imagenet_u8"])
    values = target(torch.from_numpy(greys).float()[:, None] / 255)
    expected = torch.stack([skimage_reference(grey) for grey in greys])
    assert F.cosine_similarity(values, expected, dim=-1).mean() > 0.92


def test_hog__is_bit_equal_for_every_batch_size_and_layout() -> None:
    for size, patch, chans in (((28, 28), 4, 1), ((32, 48), 16, 3)):
        target, images = build(size, patch, chans), noise(64, chans, size)
        values = target(images)
        one_by_one = torch.cat([target(image[None]) for image in images])
        assert torch.equal(values, one_by_one)
        assert torch.equal(values, target(images.to(memory_format=torch.channels_last)))


def test_hog__sums_do_not_depend_on_their_order() -> None:
    """Mirrored gradients meet each cell's pixels in another order."""
    gx, gy = sobel((noise(8, 1, (32, 32)) * 255).round())
    target = build((32, 32), 16, 1)
    sums = target.histogram(gx, gy).view(8, 2, 2, 9, 2, 2)
    mirrored = target.histogram(gx.flip(2, 3), gy.flip(2, 3)).view(8, 2, 2, 9, 2, 2)
    assert torch.equal(mirrored, sums.flip(1, 2, 4, 5))


def test_hog__is_the_same_under_autocast() -> None:
    target, images = build((32, 32), 8, 3), photos("cifar_u8", 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = target(images)
    assert values.dtype == torch.float32
    assert torch.equal(values, target(images))


def test_hog__works_on_8_bit_levels() -> None:
    target, images = build((32, 32), 8, 3), photos("cifar_u8", 8)
    assert torch.equal(target(images + 1e-4), target(images))
    assert not torch.equal(target(images.roll(1, dims=0)), target(images))


def test_hog__has_cells_of_length_1_and_flat_cells_of_0() -> None:
    target = build((32, 32), 8, 3)
    images = torch.cat([photos("cifar_u8", 4), torch.full((1, 3, 32, 32), 0.3)])
    cells = rearrange(target(images), "b l (ch n c) -> b l ch n c", ch=3, n=9)
    length = cells.norm(dim=3)
    assert torch.all((length - 1).abs().lt(1e-6) | length.eq(0))
    assert torch.equal(length[-1], torch.zeros_like(length[-1]))


def test_normalize__off_gives_the_sums_of_magnitudes() -> None:
    images = photos("cifar_u8", 4)
    sums = build((32, 32), 8, 3, normalize=False)(images)
    gx, gy = sobel((images * 255).round())
    total = (gx**2 + gy**2).sqrt().sum(dim=(1, 2, 3)) / 255
    torch.testing.assert_close(sums.sum(dim=(1, 2)), total)
    cells = rearrange(sums, "b l (ch n c) -> b l ch n c", ch=3, n=9)
    normalised = F.normalize(cells, dim=3).flatten(2)
    torch.testing.assert_close(normalised, build((32, 32), 8, 3)(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("patch", "cells"), [(16, 2), (8, 2), (4, 2), (2, 1), (14, 2), (7, 1)])
def test_cells__follow_the_patch(patch: int, cells: int) -> None:
    target = build((patch * 2, patch * 3), patch, 3)
    assert target.cells == cells
    assert target.dim == 3 * 9 * cells**2


def test_hog__refuses_what_does_not_divide() -> None:
    with pytest.raises(UserError, match="cells_per_side 3 .* patch size 16"):
        build((32, 32), 16, 3, cells_per_side=3)
    with pytest.raises(UserError, match="gaussian_window 12"):
        build((32, 32), 16, 3, gaussian_window=12)


def test_loss__sends_gradient_to_the_prediction_only() -> None:
    target = build((32, 32), 8, 3)
    value = target(photos("cifar_u8", 2).requires_grad_())
    assert not value.requires_grad
    prediction = torch.zeros_like(value, requires_grad=True)
    loss = target.loss(prediction, value)
    assert loss.shape == (2, 16)
    loss.sum().backward()
    assert prediction.grad is not None
    assert prediction.grad.abs().sum() > 0


def test_picture__draws_strokes_along_the_edge() -> None:
    y, x = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    edges = {"vertical": x >= 12, "horizontal": y >= 12, "falling": y > x, "rising": x + y > 23}
    target = build((24, 24), 8, 1)
    images = torch.stack(list(edges.values()))[:, None].float()
    drawn = target.picture(target(images), images)
    assert drawn.shape == (4, 3, 72, 72)
    side = 12
    # The cells just before the middle that each edge runs through, 12 pixels wide in the picture.
    ink = drawn[:, 0].unfold(1, side, side).unfold(2, side, side)
    vertical, horizontal = ink[0, 2, 2], ink[1, 2, 2]
    falling, rising = ink[2, 2, 2], ink[3, 2, 3]
    middle = slice(side // 2 - 1, side // 2 + 1)
    assert vertical[:, middle].mean() > 4 * vertical[middle].mean()
    assert horizontal[middle].mean() > 4 * horizontal[:, middle].mean()
    down, up = torch.eye(side).bool(), torch.eye(side).flip(1).bool()
    assert falling[down].mean() > 3 * falling[up].mean()
    assert rising[up].mean() > 3 * rising[down].mean()


def test_picture__takes_any_answer() -> None:
    for params in ({}, {"normalize": False}, {"num_bins": 4}):
        target = build((28, 42), 14, 2, **params)
        values = torch.randn(2, 6, target.dim) * 50
        drawn = target.picture(values.bfloat16(), torch.zeros(2, 2, 28, 42))
        assert drawn.shape == (2, 3, 28, 42)
        assert 0 <= drawn.min() < drawn.max() <= 1
