"""Targets of the literature against independent definitions: loops in numpy, scikit-image, scipy, torch.fft."""

import math

import numpy as np
import pytest
import torch
from scipy.cluster.vq import vq
from skimage import data, feature, filters

from mim_bench.errors import UserError
from mim_bench.targets.build import build_target
from mim_bench.targets.class_target import _cross_entropy
from mim_bench.targets.fitted import centers, nearest
from mim_bench.targets.wavelet import haar

SIZE, PATCH = (16, 24), 8
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Images:
    num_images = 40

    def __init__(self, channels=3):
        levels = torch.randint(
            256, (40, channels, *SIZE), generator=torch.Generator().manual_seed(1)
        )
        self.images = levels.float() / 255

    def __iter__(self):
        yield from self.images.split(16)


IMAGES = Images().images


def built(name, channels=3, patch=PATCH, **params):
    mean, std = (MEAN, STD) if channels == 3 else ((0.4,), (0.2,))
    target = build_target(
        name, image_size=SIZE, patch_size=patch, in_chans=channels, mean=mean, std=std, **params
    )
    if target.needs_fit:
        target.fit(Images(channels), seed=0)
    return target


def normalized_patches(images):
    """(B, L, p, p, C) by slices."""
    normal = (images.numpy() - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    return patches_of(normal)


def patches_of(images):
    return np.stack(
        [images[:, :, y : y + PATCH, x : x + PATCH].transpose(0, 2, 3, 1)
         for y in range(0, SIZE[0], PATCH) for x in range(0, SIZE[1], PATCH)], axis=1,
    )  # fmt: skip


def test_pca__is_the_eigenbasis_of_numpys_covariance():
    target = built("pca")
    rows = normalized_patches(IMAGES).reshape(-1, 192)
    variances, axes = np.linalg.eigh(np.cov(rows.T, bias=True))
    top = axes[:, ::-1][:, :24]
    wanted = (rows - rows.mean(0)) @ top
    got = target(IMAGES).numpy().reshape(-1, 24)
    np.testing.assert_allclose(np.abs(got), np.abs(wanted), atol=2e-3)
    assert target.dim == 24 and target.fit(Images(), seed=0)["kept_variance"] == pytest.approx(
        variances[-24:].sum() / variances.sum()
    )


def test_pca__of_all_components_gives_the_image_back():
    target = built("pca", share=1.0)
    torch.testing.assert_close(target.picture(target(IMAGES), IMAGES), IMAGES, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "side"), [("mean_color", 1), ("downsized", 4)])
def test_mean_color__is_the_class_of_each_cells_mean(name, side):
    got = built(name)(IMAGES[:3]).reshape(3, 6, side, side).numpy()
    levels = patches_of((IMAGES[:3] * 255).round().numpy())
    cell = PATCH // side
    for b, patch, i, j in np.ndindex(3, 6, side, side):
        mean = levels[b, patch, i * cell : (i + 1) * cell, j * cell : (j + 1) * cell].mean((0, 1))
        red, green, blue = (int(value * 8 / 256) for value in mean)
        assert got[b, patch, i, j] == red + 8 * green + 64 * blue


def test_mean_color__has_512_classes_and_their_middle_colour():
    target = built("mean_color")
    assert target.dim == 512 and built("downsized").dim == 16 * 512
    picture = target.picture(target(IMAGES), IMAGES)
    means = torch.nn.functional.avg_pool2d(IMAGES, PATCH)
    assert (torch.nn.functional.avg_pool2d(picture, PATCH) - means).abs().max() <= 1 / 16 + 2 / 255
    with pytest.raises(UserError, match="cells_per_side=3"):
        built("mean_color", cells_per_side=3)


@pytest.mark.parametrize("piece", [1, 7 * 512, 10**9])
def test_downsized__loss_is_the_mean_cross_entropy_of_its_cells_however_many_pieces(
    monkeypatch, piece
):
    target = built("downsized")
    indices = target(IMAGES[:3])
    logits = torch.randn(3, 6, target.dim, generator=torch.Generator().manual_seed(0))
    want, got = logits.double().requires_grad_(), logits.requires_grad_()
    right = want.unflatten(-1, (16, 512)).log_softmax(-1).gather(-1, indices[..., None])
    (-right[..., 0].mean(-1)).square().sum().backward()
    monkeypatch.setattr("mim_bench.targets.class_target.PIECE_LOGITS", piece)
    loss = target.loss(got, indices)
    loss.square().sum().backward()
    torch.testing.assert_close(loss.double(), -right[..., 0].mean(-1))
    torch.testing.assert_close(got.grad.double(), want.grad)


def test_single_index__has_the_same_loss_with_its_classes_in_either_order():
    target = built("mean_color")
    indices = target(IMAGES[:3])
    logits = torch.randn(3, 6, target.dim, generator=torch.Generator().manual_seed(0))
    other = _cross_entropy(logits.flatten(0, 1), indices.flatten()).view(3, 6)
    torch.testing.assert_close(target.loss(logits, indices), other)


def test_palette__is_the_nearest_colour_of_each_pixel_by_scipy():
    target = built("palette", num_colors=12, cells_per_side=2)
    got = target(IMAGES[:2]).numpy()
    means = patches_of(IMAGES[:2].numpy()).reshape(2, 6, 2, 4, 2, 4, 3).mean((3, 5)).reshape(-1, 3)
    assert (got.flatten() == vq(means, target.palette.numpy())[0]).mean() > 0.99
    assert target.fit(Images(), seed=0)["codebook_perplexity"] > 6
    with pytest.raises(UserError, match=r"num_colors=4096: allowed: at most \d+"):
        built("palette", num_colors=4096)


def test_patch_kmeans__is_a_fixed_point_of_lloyds_iteration():
    rows = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0)).double()
    found = centers(rows, 5, "k")
    index = nearest(rows.float(), found)
    again = torch.stack([rows[index == k].mean(0) for k in range(5)])
    torch.testing.assert_close(again.float(), found, atol=0.02, rtol=0)
    target = built("patch_kmeans", num_clusters=6)
    patches = normalized_patches(IMAGES[:2]).reshape(-1, 192)
    got = target(IMAGES[:2]).flatten().numpy()
    assert (got == vq(patches, target.codebook.numpy().astype(float))[0]).all()


def test_low_pass__keeps_frequencies_up_to_the_cutoff():
    target = built("frequency", cutoff=0.25)
    whole = target.geometry.unpatchify(target(IMAGES[:2]))
    spectrum = torch.fft.fft2(whole).abs()
    wanted = torch.fft.fft2(target.geometry.normalize(IMAGES[:2])).abs()
    radius = (torch.fft.fftfreq(16)[:, None] ** 2 + torch.fft.fftfreq(24) ** 2).sqrt()
    assert spectrum[..., radius > 0.2501].max() < 1e-3
    torch.testing.assert_close(
        spectrum[..., radius < 0.2499], wanted[..., radius < 0.2499], atol=1e-3, rtol=0
    )


def test_fourier__loss_is_the_mean_modulus_over_all_frequencies():
    target = built("fourier")
    a, b = (torch.from_numpy(normalized_patches(IMAGES[k : k + 2])).movedim(-1, 2) for k in (0, 2))
    difference = torch.fft.fft2(a, norm="ortho") - torch.fft.fft2(b, norm="ortho")
    wanted = difference.abs().mean((2, 3, 4)).float()
    got = target.loss(target(IMAGES[:2]), target(IMAGES[2:4]))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target.picture(target(IMAGES), IMAGES), IMAGES, atol=1e-4, rtol=0)
    assert torch.isfinite(
        torch.autograd.grad(
            target.loss(
                zero := torch.zeros(1, 1, target.dim, requires_grad=True), zero.detach()
            ).sum(),
            zero,
        )[0]
    ).all()


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_haar__is_orthonormal_and_its_first_rows_are_means_of_blocks(levels):
    basis, level = haar(8, levels)
    torch.testing.assert_close(basis @ basis.T, torch.eye(64), atol=1e-6, rtol=0)
    block = 2**levels
    image = torch.randn(8, 8)
    means = image.unfold(0, block, block).unfold(1, block, block).mean((2, 3)) * block
    torch.testing.assert_close(
        basis[level == 0] @ image.flatten(), means.flatten(), atol=1e-5, rtol=0
    )
    assert torch.bincount(level).tolist() == [(8 // block) ** 2] + [
        3 * 4 ** (3 - d) for d in range(levels, 0, -1)
    ]
    # a detail of the finest level, by hand: differences inside a 2 x 2 block
    a, b, c, d = image[0, 0], image[0, 1], image[1, 0], image[1, 1]
    finest = (basis[level == levels] @ image.flatten())[[0, 16, 32]]
    by_hand = torch.stack([a - b + c - d, a + b - c - d, a - b - c + d]) / 2
    torch.testing.assert_close(
        finest.abs().sort().values, by_hand.abs().sort().values, atol=1e-5, rtol=0
    )


def test_wavelet__every_level_counts_alike_and_coefficients_give_the_image_back():
    target = built("wavelet")
    values = target(IMAGES[:2])
    torch.testing.assert_close(target.picture(values, IMAGES[:2]), IMAGES[:2], atol=1e-4, rtol=0)
    _, level = haar(8, 3)
    for depth in range(4):
        wrong = values.clone().unflatten(-1, (64, 3))
        wrong[:, :, level == depth] += 1
        torch.testing.assert_close(target.loss(wrong.flatten(2), values), torch.full((2, 6), 0.25))


def test_sobel__is_scikit_images_magnitude():
    got = built("edges", channels=1)
    levels = (Images(1).images[:1] * 255).round()
    grey = levels[0, 0].numpy() / 255
    horizontal = filters.sobel_h(np.pad(grey, 1, mode="reflect"))[1:-1, 1:-1]
    vertical = filters.sobel_v(np.pad(grey, 1, mode="reflect"))[1:-1, 1:-1]
    wanted = np.hypot(horizontal, vertical) * 4 / (4 * math.sqrt(2))  # theirs has weights of sum 1
    values = got(levels / 255)[0].view(2, 3, 8, 8).permute(0, 2, 1, 3).reshape(SIZE)
    np.testing.assert_allclose(values[1:-1, 1:-1], wanted[1:-1, 1:-1], atol=1e-5)


def test_canny__is_scikit_images():
    target = build_target(
        "canny", image_size=(128, 96), patch_size=8, in_chans=1, mean=(0.4,), std=(0.2,)
    )
    photo = data.camera()
    crops = [photo[y : y + 128, x : x + 96] for y, x in ((60, 180), (100, 200), (300, 150))]
    values = target(torch.from_numpy(np.stack(crops))[:, None] / 255)
    edges = values.unflatten(1, (16, 12)).unflatten(3, (8, 8)).transpose(2, 3).reshape(3, 128, 96)
    for got, crop in zip(edges.numpy(), crops, strict=True):
        wanted = feature.canny(crop / 255)
        assert 0.01 < wanted.mean() < 0.3
        assert (got != wanted).mean() < 1e-3  # ties between neighbours are rounded otherwise


@pytest.mark.parametrize("operator", ["laplacian", "lbp"])
def test_texture__is_that_of_a_loop_over_neighbours(operator):
    target = built("edges", channels=1, operator=operator)
    levels = (Images(1).images[:1] * 255).round()
    grey = np.pad(levels[0, 0].numpy(), 1, mode="reflect")
    values = target(levels / 255)[0].view(2, 3, 8, 8, -1).permute(0, 2, 1, 3, 4).reshape(*SIZE, -1)
    for y, x in np.ndindex(*SIZE):
        area = grey[y : y + 3, x : x + 3]
        if operator == "laplacian":
            wanted = [
                (area[0, 1] + area[1, 0] + area[1, 2] + area[2, 1] - 4 * area[1, 1]) / (4 * 255)
            ]
        else:
            around = [
                area[p] for p in ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
            ]
            wanted = [float(value >= area[1, 1]) for value in around]
        np.testing.assert_allclose(values[y, x], wanted, atol=1e-6)


def test_hog_multiscale__is_hog_at_each_scale_and_scales_count_alike():
    target = built("hog_multiscale")
    each = [built("hog", cells_per_side=n) for n in (1, 2, 4)]
    assert torch.equal(target(IMAGES), torch.cat([one(IMAGES) for one in each], dim=-1))
    other = torch.zeros(40, 6, target.dim)
    wanted = torch.stack([one.loss(torch.zeros(40, 6, one.dim), one(IMAGES)) for one in each]).mean(
        0
    )
    torch.testing.assert_close(target.loss(other, target(IMAGES)), wanted)


def test_random_projection__is_the_code_of_the_smallest_angle_and_differs_by_seed():
    target = built("random_projection", vocab_size=32)
    patches = normalized_patches(IMAGES).reshape(-1, 192)
    patches = (patches - patches.mean(1, keepdims=True)) / patches.std(1, keepdims=True)
    projected = patches @ target._projection.numpy()
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    nearest_code = vq(projected, target._codes.numpy())[0]
    assert (target(IMAGES).flatten().numpy() == nearest_code).mean() > 0.99
    assert not torch.equal(
        built("random_projection", vocab_size=32, seed=1)(IMAGES), target(IMAGES)
    )
