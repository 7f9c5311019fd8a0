"""Frozen teachers: random ones by seed, finished runs, timm's files; sums of targets."""

import pytest
import timm
import torch
import torch.nn.functional as F

from mim_bench.config.run import ModelConfig
from mim_bench.errors import UserError
from mim_bench.evaluate.features import layers
from mim_bench.evaluate.load_encoder import load_encoder
from mim_bench.experiment.run import execute
from mim_bench.targets.build import build_target

IMAGES = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def built(name, **params):
    model = ModelConfig(embed_dim=48, depth=2, num_heads=3, patch_size=8)
    return build_target(
        name, image_size=32, patch_size=8, in_chans=1, mean=(0.2854,), std=(0.3527,), model=model, **params
    )  # fmt: skip


def test_random_teacher__is_drawn_from_the_seed():
    first, again, other = (built("random_feature", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first(IMAGES), again(IMAGES))
    assert not torch.allclose(first(IMAGES), other(IMAGES), atol=0.1)
    values = first(IMAGES)
    torch.testing.assert_close(values.mean(-1), torch.zeros(3, 16), atol=1e-5, rtol=0)
    assert first.feature(IMAGES).shape == (3, 48)


def test_teacher_of_a_finished_run__has_its_features(small, tmp_path):
    folder = execute(small("pixel", "evaluate.protocols=knn"), out=tmp_path).folder
    target = built("feature", teacher=str(folder), num_blocks=1)
    encoder = load_encoder(folder).eval()
    blocks = []
    encoder.blocks[-1].register_forward_hook(lambda _, __, output: blocks.append(output))
    with torch.no_grad():
        layers(encoder, target.geometry.normalize(IMAGES), ("last",))
    wanted = F.layer_norm(blocks[0][:, 1:], (target.dim,))
    torch.testing.assert_close(target(IMAGES), wanted, atol=1e-5, rtol=1e-5)
    assert target.params.sha256 and target.params.sha256 != built("feature").params.sha256


def test_timm_teacher__comes_from_a_local_file_and_nothing_is_downloaded(tmp_path):
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=32, in_chans=1, num_classes=0
    )
    torch.save(model.state_dict(), tmp_path / "teacher.pth")
    given = {"teacher": "timm:vit_tiny_patch16_224"}
    with pytest.raises(UserError, match="needs weights=FILE: nothing is downloaded"):
        built("feature", **given)
    with pytest.raises(UserError, match="has no .4, 4. grid"):  # patches of 16, not 8
        built("feature", **given, weights=str(tmp_path / "teacher.pth"))
    with pytest.raises(UserError, match="is no finished run"):
        built("feature", teacher=str(tmp_path))
    target = build_target(
        "feature", image_size=32, patch_size=16, in_chans=1, mean=(0.5,), std=(0.5,),
        weights=str(tmp_path / "teacher.pth"), **given,
    )  # fmt: skip
    assert target(IMAGES).shape == (3, 4, 192)


def test_sum__is_the_weighted_sum_of_its_parts():
    both = built("hog_pixel", weights={"hog": 2.0, "pixel": 0.5})
    hog, pixel = built("hog"), built("pixel")
    assert torch.equal(both(IMAGES), torch.cat([hog(IMAGES), pixel(IMAGES)], dim=-1))
    zeros = torch.zeros(3, 16, both.dim)
    wanted = 2 * hog.loss(zeros[..., : hog.dim], hog(IMAGES)) + 0.5 * pixel.loss(
        zeros[..., hog.dim :], pixel(IMAGES)
    )
    torch.testing.assert_close(both.loss(zeros, both(IMAGES)), wanted)
    with pytest.raises(UserError, match="'pca' cannot be a part"):
        built("hog_pixel", weights={"pca": 1.0})
    with pytest.raises(UserError, match="unknown target 'hgo'; nearest: hog"):
        built("hog_pixel", weights={"hgo": 1.0})
    own = built("hog_pixel", settings={"hog": {"cells_per_side": 1}})
    assert own.dim < both.dim
    with pytest.raises(UserError, match="settings: 'dvae' is no part; allowed: hog, pixel"):
        built("hog_pixel", settings={"dvae": {}})
    with pytest.raises(UserError, match=r"settings\.hog\.num_bins='x'"):
        built("hog_pixel", settings={"hog": {"num_bins": "x"}})
