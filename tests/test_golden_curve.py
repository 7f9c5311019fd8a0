"""Learning curves that no change of structure may move: 30 steps of each target, 10 of each probe.

    python tests/test_golden_curve.py            # adds the curves of targets that have none to tests/golden/curves.json
    python tests/test_golden_curve.py hog pixel  # writes these anew, which needs a reason

float32, one thread, the embedded images. Another processor rounds otherwise, which `TOLERANCE` allows;
another draw, order or initial weight moves a loss by more than that within a few steps.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import mim_bench
from mim_bench.config import recipe

FILE = Path(__file__).parent / "golden" / "curves.json"
TOLERANCE = 1e-3
"""Relative, of each step's loss."""
TARGETS = recipe.names("targets")
CUT = (
    "data.limit_images=160",
    "model.embed_dim=48",
    "model.depth=2",
    "model.decoder_dim=32",
    "pretrain.epochs=3",
    "pretrain.batch_size=16",
    "linear.solver=lars",
    "linear.augment=false",
    "linear.blr=1.0",
    "linear.epochs=2",
    "linear.warmup_epochs=1",
    "linear.batch_size=32",
    "finetune.epochs=2",
    "finetune.warmup_epochs=1",
    "finetune.batch_size=32",
    "finetune.holdout_fraction=0",
    "finetune.mixup=0.8",
    "finetune.drop_path=0.1",
    "runtime.log_every_steps=1",
    "runtime.device=cpu",
    "runtime.precision=float32",
)
TOKENIZER = ("vocab_size=16", "width=8", "fit_epochs=1")
OF_TARGET = {
    **{
        name: tuple(f"{name}.{setting}" for setting in TOKENIZER)
        for name in ("dvae", "vq_distilled", "vq_perceptual")
    },
    "palette": ("palette.num_colors=16",),
    "patch_kmeans": ("patch_kmeans.num_clusters=8",),
}


def curves(target: str, out: Path) -> dict[str, list[float]]:
    """Training -> loss of each step; the probes run on one target alone, as they are the same code for all."""
    protocols = "linear,finetune" if target == "hog" else "knn"
    overrides = [*CUT, *OF_TARGET.get(target, ()), f"evaluate.protocols={protocols}"]
    mim_bench.run(mim_bench.load_config(target, "tiny", overrides), out=out)
    return {
        path.stem: [json.loads(line)["loss"] for line in path.read_text().splitlines()]
        for path in sorted(out.glob("*/*.jsonl"))
    }


@pytest.mark.parametrize("target", TARGETS)
def test_learning_curves__stay_as_stored(target, tmp_path):
    stored = json.loads(FILE.read_text())[target]
    now = curves(target, tmp_path)
    assert {name: len(losses) for name, losses in now.items()} == {
        name: len(losses) for name, losses in stored.items()
    }
    for name, losses in stored.items():
        assert now[name] == pytest.approx(losses, rel=TOLERANCE), name


def test_stored_curves__are_30_steps_and_10():
    stored = json.loads(FILE.read_text())
    assert set(stored) == set(TARGETS)
    assert all(len(of_target["pretrain"]) == 30 for of_target in stored.values())
    assert {name: len(losses) for name, losses in stored["hog"].items()} == {
        "pretrain": 30, "linear": 10, "finetune": 10,
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    written = json.loads(FILE.read_text())
    for name in sys.argv[1:] or [name for name in TARGETS if name not in written]:
        with tempfile.TemporaryDirectory() as folder:
            written[name] = curves(name, Path(folder))
    FILE.write_text(json.dumps(dict(sorted(written.items())), indent=1) + "\n")
