"""Shared by the tests: golden files, tiny configs, one thread so that several test processes fit."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Browser

from mim_bench.config.resolve import load_config
from mim_bench.config.run import RunConfig

GOLDEN = Path(__file__).parent / "golden"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Arrays of a golden file by name."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as file:
            return {key: file[key] for key in file.files}

    return load


SMALL = (
    "data.limit_images=120",
    "model.embed_dim=24",
    "model.depth=2",
    "model.decoder_dim=16",
    "pretrain.epochs=3",
    "pretrain.batch_size=30",
    "pretrain.warmup_epochs=1",
    "linear.solver=lars",
    "linear.augment=false",
    "linear.blr=1.0",
    "linear.epochs=3",
    "low_shot.num_draws=3",
    "linear.batch_size=60",
    "linear.warmup_epochs=1",
    "finetune.epochs=2",
    "finetune.batch_size=40",
    "scratch.epochs=2",
    "scratch.batch_size=40",
    "runtime.device=cpu",
    "runtime.checkpoint_every_epochs=1",  # by time there would be none to resume from
)


@pytest.fixture
def small() -> Callable[..., RunConfig]:
    """A config that trains in a second: `small("hog", "seed=1")`."""

    def build(target: str = "norm_pixel", *overrides: str) -> RunConfig:
        return load_config(target, "tiny", [*SMALL, *overrides])

    return build


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Browser]:
    """A browser that shows the module's `page`, as wide as a desk's."""
    with Browser() as browser:
        browser.resize(1280)
        browser.open(page)
        yield browser


@pytest.fixture(autouse=True, scope="session")
def _tokenizers_of_seconds():
    """Fits of a few updates collapse, which is of no matter where the tokens are not what is tested."""
    from mim_bench.targets import fitted

    gate, fitted.MIN_PERPLEXITY = fitted.MIN_PERPLEXITY, 0.0
    yield gate
    fitted.MIN_PERPLEXITY = gate
