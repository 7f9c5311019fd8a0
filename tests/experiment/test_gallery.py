"""The picture of a benchmark's targets: headings have room however small the images are."""

import itertools

import pytest
import torch
from matplotlib.text import Text

from mim_bench.evaluate.reconstruction import Sample
from mim_bench.experiment.gallery import _compose


@pytest.mark.parametrize(("size", "factor"), [(32, 1), (32, 4), (224, 1)])
def test_headings__do_not_overlap_and_lie_on_the_sheet(size, factor):
    images = torch.rand(4, 3, size, size)
    drawn = torch.rand(4, 3, factor * size, factor * size)
    sample = Sample(
        images=images,
        mask=torch.rand(4, 16) > 0.5,
        target=drawn,
        prediction=drawn,
        ground_truth=True,
    )
    figure = _compose({"pixel": sample, "norm_pixel": sample}, (4, 4), "Mask: random, 0.5 hidden. ")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.findobj(Text) if text.get_text()]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    assert all(box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
