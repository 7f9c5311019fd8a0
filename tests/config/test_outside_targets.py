"""Targets of installed packages: an entry point is a target wherever a recipe is."""

import os
import subprocess
import sys

import pytest

CODE = """
from mim_bench.target import Target


class Means(Target):
    'The mean of each patch.'

    def __init__(self, params, context):
        super().__init__(params, context)
        self.dim = 1

    def forward(self, images):
        return self.geometry.patchify(images).mean(-1, keepdim=True)

    def loss(self, prediction, target):
        return (prediction.float() - target).square().mean(-1)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder on the path as pip leaves one: a module, and metadata that names its target."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "their_package.py").write_text(CODE)
    info = folder / "their_package-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their_package\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[mim_bench.targets]\nmeans = their_package:Means\nhog = their_package:Means\nlost = gone:Lost\n"
    )
    return folder


def mim_bench(installed, folder, *arguments):
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "mim_bench", *arguments],
        env=os.environ | {"PYTHONPATH": path}, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_entry_point__is_listed_shown_and_trained_on(installed, tmp_path):
    listed = mim_bench(installed, tmp_path, "list", "targets").stdout
    assert "Means of their_package" in listed and listed.count("\nhog  ") == 1
    shown = mim_bench(installed, tmp_path, "show", "means").stdout
    assert "The mean of each patch." in shown and "their_package 1.2" in shown
    made = mim_bench(
        installed, tmp_path, "run", "--target", "means", "--protocols", "knn", "--limit-images", "64",
        "pretrain.epochs=1", "pretrain.warmup_epochs=0", "pretrain.batch_size=32",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert list((tmp_path / "runs").glob("means-tiny-s0-*/records/knn.json"))


def test_shipped_recipe__comes_before_a_packages_of_the_same_name(installed, tmp_path):
    assert (
        "histograms of oriented gradients" in mim_bench(installed, tmp_path, "show", "hog").stdout
    )


def test_entry_point__that_is_gone_is_named_when_it_is_used_alone(installed, tmp_path):
    assert mim_bench(installed, tmp_path, "list", "targets").returncode == 0
    lost = mim_bench(installed, tmp_path, "run", "--target", "lost")
    assert lost.returncode == 2 and "gone:Lost" in lost.stderr and "PYTHONPATH" in lost.stderr
