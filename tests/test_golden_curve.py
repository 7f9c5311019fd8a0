"""Learning curves that no change of structure may move: 30 steps of each target, 10 of each probe.

    python tests/test_golden_curve.py    # writes tests/golden/curves.json anew; a change of it needs a reason

float32, one thread, the embedded images. Another processor rounds otherwise, which `TOLERANCE` allows;
another draw, order or initial weight moves a loss by more than that within a few steps.
"""

import json
import tempfile
from pathlib import Path

import pytest
import torch

import mim_bench

FILE = Path(__file__).parent / "golden" / "curves.json"
TOLERANCE = 1e-3
"""Relative, of each step's loss."""
TARGETS = ("dvae", "ema_feature", "hog", "norm_pixel", "pixel")
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
OF_TARGET = {"dvae": ("dvae.vocab_size=16", "dvae.width=8", "dvae.fit_epochs=1")}


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
    written = {}
    for each in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            written[each] = curves(each, Path(folder))
    FILE.write_text(json.dumps(written, indent=1) + "\n")
