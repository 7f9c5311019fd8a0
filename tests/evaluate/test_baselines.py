"""Baselines: fixed features under the same probes, computed once for all runs."""

import numpy as np
import torch

from mim_bench.evaluate import baselines
from mim_bench.experiment.run import execute

PROBES = {f"{kind}:{probe}" for kind in ("pixels", "pca", "target") for probe in ("linear", "knn")}


def test_baselines__need_no_pre_training_and_are_computed_once(small, tmp_path, monkeypatch):
    config = small("hog", "evaluate.protocols=baselines")
    result = execute(config, out=tmp_path)
    (record,) = result.records
    assert {metric.readout for metric in record.metrics} == PROBES
    assert record.pretrain is None and not (result.folder / "pretrain.json").exists()

    computed = []
    probed = baselines._probed
    monkeypatch.setattr(
        baselines, "_probed", lambda *given: computed.append(given) or probed(*given)
    )
    other = small("pixel", "evaluate.protocols=baselines", "seed=1")
    (second,) = execute(other, out=tmp_path).records
    assert len(computed) == 1  # its target: pixels and PCA are there
    by_readout = [{m.readout: m.value for m in one.metrics} for one in (record, second)]
    for readout in PROBES - {"target:linear", "target:knn"}:
        assert by_readout[0][readout] == by_readout[1][readout]


def test_feature_of_pixel__is_raw_pixels(small, tmp_path):
    """The target `pixel` in a row is the image, so both baselines are one number."""
    (record,) = execute(small("pixel", "evaluate.protocols=baselines"), out=tmp_path).records
    values = {metric.readout: metric.value for metric in record.metrics}
    assert values["pixels:knn"] == values["target:knn"]


def test_pca__has_the_encoders_width_and_the_most_variance_of_the_training_images(
    small, tmp_path, monkeypatch
):
    probed = []

    def spy(context, train, test):
        probed.append((train, test))
        return plain(context, train, test)

    plain = baselines._probed
    monkeypatch.setattr(baselines, "_probed", spy)
    execute(small("pixel", "evaluate.protocols=baselines"), out=tmp_path)
    (pixels, _), (pca, _), _ = probed
    assert pca.shape[1] == 24  # embed_dim
    spectrum = torch.linalg.svdvals(pixels - pixels.mean(0))[:24].square().sum()
    torch.testing.assert_close(pca.square().sum(), spectrum, rtol=1e-3, atol=0.0)


def test_large_images__are_averaged_down(small, tmp_path):
    class Context:
        class features:  # noqa: N801
            class geometry:  # noqa: N801
                normalize = staticmethod(lambda images: images)

    images = torch.rand(2, 3, 224, 160)
    assert baselines._image(Context, images).shape == (2, 3 * 64 * 64)
    assert np.isclose(
        float(baselines._image(Context, images).mean()), float(images.mean()), atol=0.01
    )


def test_target_that_follows_the_student__has_no_fixed_feature(small, tmp_path):
    config = small("ema_feature", "evaluate.protocols=baselines")
    (record,) = execute(config, out=tmp_path).records
    assert {metric.readout.partition(":")[0] for metric in record.metrics} == {"pixels", "pca"}
