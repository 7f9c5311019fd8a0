"""What the machine can hold is asked before anything is built."""

import pytest
import torch

from mim_bench.config.resolve import load_config
from mim_bench.errors import UserError
from mim_bench.train.environment import check_memory

GIVEN = ["data.image_size=32", "data.in_chans=1", "data.mean=0.5", "data.std=0.5"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.embed_dim=65532", "model.depth=100"],
        ["pretrain.batch_size=1000000", "model.depth=1000"],
    ],
)
def test_training_beyond_all_memory__is_refused_with_what_it_needs(overrides):
    config = load_config("hog", "tiny", [*GIVEN, *overrides])
    with pytest.raises(
        UserError, match=r"needs at least [\d,.]+ GB for weights and [\d,.]+ GB for a batch"
    ):
        check_memory(config, torch.device("cpu"))
    check_memory(load_config("hog", "tiny", GIVEN), torch.device("cpu"))
