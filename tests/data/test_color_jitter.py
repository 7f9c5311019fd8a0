"""Colour jitter: torchvision's operations, factors and order by sample alone, off by default."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from mim_bench.data.color_jitter import ColorJitter
from mim_bench.data.run_data import complete, open_data
from mim_bench.errors import UserError
from mim_bench.train.pretrain import views


def photo(channels=3):
    return np.random.default_rng(0).integers(0, 256, (12, 9, channels), dtype=np.uint8)


def test_jitter__depends_on_seed_epoch_and_sample_alone():
    image = photo()
    first = ColorJitter(0.4, seed=0, epoch=0)(image, 7)
    assert np.array_equal(first, ColorJitter(0.4, seed=0, epoch=0)(image, 7))
    for other in (ColorJitter(0.4, seed=1, epoch=0)(image, 7), ColorJitter(0.4, seed=0, epoch=1)(image, 7),
                  ColorJitter(0.4, seed=0, epoch=0)(image, 8)):  # fmt: skip
        assert not np.array_equal(first, other)


def test_jitter__is_one_of_the_six_orders_of_torchvisions_operations():
    """Some order of brightness, contrast and saturation with factors in 1 ± 0.4 gives the same image."""
    import itertools

    from PIL import Image

    from mim_bench import rng

    image = photo()
    got = ColorJitter(0.4, seed=3, epoch=2)(image, 5)
    draws = rng.uniform(torch.tensor([5]), 6, seed=3, epoch=2, stream="color jitter")[0]
    factors = (0.6 + 0.8 * draws[:3]).tolist()
    assert all(0.6 <= factor <= 1.4 for factor in factors)
    operations = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    )
    made = []
    for order in itertools.permutations(range(3)):
        changed = Image.fromarray(image)
        for place in order:
            changed = operations[place](changed, factors[place])
        made.append(np.array_equal(np.asarray(changed), got))
    assert any(made)


def test_grey_image__keeps_its_one_channel():
    assert ColorJitter(0.4, seed=0, epoch=0)(photo(1), 0).shape == (12, 9, 1)


def test_other_channel_counts__are_refused():
    with pytest.raises(UserError, match="works on 1 or 3 channels"):
        ColorJitter(0.4, seed=0, epoch=0)(photo(4), 0)


def test_pretraining__sees_jittered_images_only_if_asked(small):
    found = {}
    for strength in (0, 0.4):
        config = small("pixel", f"augment.color_jitter={strength}")
        data = open_data(config, torch.device("cpu"))
        config = complete(config, data)
        batches = views(config, data, [torch.arange(20)], 0, torch.device("cpu"), 0)
        found[strength] = next(iter(batches))[0]
    assert found[0].shape == found[0.4].shape and not torch.equal(found[0], found[0.4])
