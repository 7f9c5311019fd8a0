"""Records without training, for tests of what is made from records: every cell of a benchmark, with answers
that are drawn at random around an accuracy that depends on the cell's place."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mim_bench.config import recipe
from mim_bench.config.cells import Cell, cells
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.resolve import validated
from mim_bench.config.trainings import fit_batches
from mim_bench.evaluate import low_shot, partial
from mim_bench.evaluate.features import READOUTS
from mim_bench.records.provenance import Code, Device
from mim_bench.records.record import (
    DataFacts,
    Metric,
    PretrainFacts,
    Record,
    step_metric,
    top1,
    write,
)
from mim_bench.records.run_folder import record_hash
from mim_bench.records.store import home

NUM_IMAGES, _NUM_TRAIN_IMAGES = 400, 10_000
PASSING = {"mean_loss": 1.0, "ridge_loss": 0.6, "model_loss": 0.4, "ridge_r2": 0.4, "model_r2": 0.6}
"""Losses of a pre-training that counts."""
_DATA = {"image_size": (32, 32), "in_chans": 1, "mean": (0.2854,), "std": (0.3527,)}


def five_seeds(name: str, results: Path) -> str:
    """A benchmark of one's own, below `results`: a shipped one that declares five seeds; returns its file."""
    path = results / f"five_{name}" / f"five_{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (recipe.folder("benchmarks") / f"{name}.toml").read_text(encoding="utf-8")
    path.write_text(re.sub(r"^seeds = .*$", "seeds = [0, 1, 2, 3, 4]", text, flags=re.MULTILINE))
    return str(path)


def fake_results(
    name: str,
    preset: str,
    results: Path,
    *,
    spread: float = 0.05,
    seeds: tuple[int, ...] | None = None,
    overrides: Sequence[str] = (),
    baseline: float = -0.3,
    gate: dict[str, float] | None = None,
    gate_seeds: Sequence[int] | None = None,
) -> None:
    """Writes every record that a sweep of the benchmark would.

    `spread`: how far apart the accuracies of the rows are, from first to last. `baseline`: how far raw pixels are above
    the first. `gate`: losses of the last row's pre-training and of what it has to beat, in `gate_seeds` or all.
    """
    todo = [
        cell
        for cell in cells(name, preset, overrides)
        if seeds is None or cell.config.seed in seeds
    ]
    labels = list(dict.fromkeys(cell.label for cell in todo))
    for cell in todo:
        place = labels.index(cell.label) / max(1, len(labels) - 1)
        for protocol in cell.config.evaluate.protocols:
            record, correct = fake_record(cell, protocol, 0.7 + spread * place, baseline)
            has_gate = gate_seeds is None or record.seed in gate_seeds
            if gate is not None and has_gate and place == 1 and record.pretrain:
                facts = record.pretrain.model_copy(update={"gate": gate})
                record = record.model_copy(update={"pretrain": facts})
            folder = home(name, preset, results) / "records"
            write(folder / f"{record.run_id}__{protocol}.json", record, correct)


def fake_record(
    cell: Cell, protocol: str, accuracy: float, baseline: float = -0.3
) -> tuple[Record, dict[str, np.ndarray]]:
    """One record, and which of the test images were right."""
    content = cell.config.model_dump()
    content["data"] |= {k: v for k, v in _DATA.items() if content["data"][k] is None}
    config = fit_batches(validated(content), _NUM_TRAIN_IMAGES)
    generator = np.random.default_rng([config.seed, int(config.hash[:8], 16)])
    # an image is as hard for every row, so that differences are paired
    hardness = np.random.default_rng(0).random(NUM_IMAGES)
    noise = 0.1 * generator.standard_normal(NUM_IMAGES)

    def right(shift: float = 0.0) -> np.ndarray:
        return hardness + noise < accuracy + shift

    correct: dict[str, np.ndarray] = {}
    entry = PROTOCOLS[protocol]
    if protocol in ("knn", "linear"):
        correct = {readout: right(-0.02 * place) for place, readout in enumerate(READOUTS)}
    elif protocol == "low_shot":
        for readout in READOUTS:
            for fraction in config.low_shot.fractions:
                for number in range(config.low_shot.num_draws):
                    correct[low_shot.readout(readout, fraction, number)] = right(fraction - 0.2)
    elif protocol == "partial":
        for blocks in config.partial.blocks:
            if blocks < config.model.depth:
                correct[partial.readout(blocks)] = right(0.01 * blocks)
    elif protocol == "baselines":
        kinds = ("pixels", "pca", "target")
        correct = {
            f"{kind}:{probe}": right(baseline - 0.02 * place)
            for place, kind in enumerate(kinds)
            for probe in ("linear", "knn")
        }
    elif protocol != "speed":
        correct = {"model": right(0.1 if protocol == "finetune" else 0.05)}
    metrics = [top1(readout, bits) for readout, bits in correct.items()]
    if protocol == "speed":
        slow = 1.0 + content["model"]["decoder_depth"]
        figures = {"images_per_s": 1000 / slow, "step_s": 0.05 * slow, "target_s": 0.01,
                   "step_flops": 1e9 * slow, "peak_gb": 0.5}  # fmt: skip
        metrics = [step_metric(name, value, 40) for name, value in figures.items()]
    if entry.sections[:1] == ("scratch",):
        spent = {"name": "train_flops", "readout": "model", "value": 5e12, "stderr": 0.0, "n": 40}
        metrics.append(Metric.model_validate(spent | {"higher_is_better": False}))
    control = [top1(m.readout, right(-0.1)) for m in metrics] if entry.has_control else []
    losses = tuple((epoch, 0.5 / epoch) for epoch in range(1, config.pretrain.epochs + 1))
    facts = PretrainFacts(
        images_seen=_NUM_TRAIN_IMAGES * config.pretrain.epochs, seconds=100.0, images_per_s=1000.0,
        final_loss=losses[-1][1] if losses else None, epoch_losses=losses, first_batches="b" * 64,
        flops=2e12, gate=PASSING, fit={"fit_seconds": 9.0, "fit_flops": 1e12} if config.target.name == "dvae" else {},
    )  # fmt: skip
    declared = config.evaluate.readout if entry.has_readouts else metrics[0].readout
    curve = tuple(0.5 + 0.3 * step / 5 for step in range(1, 6))
    record = Record(
        run_id=config.run_id, run_hash=config.hash, record_hash=record_hash(config, protocol),
        target=config.target.name, preset=config.preset, seed=config.seed, protocol=protocol,
        protocol_version=entry.version, declared_readout=declared, metrics=tuple(metrics),
        control=tuple(control), curves={"model": curve} if {"finetune", "scratch"} & set(entry.sections) else {},
        config=config.model_dump(mode="json"),
        data=DataFacts(
            source=config.data.source, fingerprint="f" * 64, split="test", num_train_images=_NUM_TRAIN_IMAGES,
            num_evaluated_images=NUM_IMAGES, num_skipped_images=0, limited=False,
            class_names=("shirt", "shoe"),
        ),
        pretrain=facts if entry.needs_encoder else None, code=Code(commit="c" * 40, dirty=False),
        versions={"torch": "2.11.0"}, device=Device(kind="cpu", name="a CPU", count=1, cpu_threads=1),
        precision="float32", compiled=False, seconds=1.0, started="2026-11-25T00:00:00+00:00",
        command="fake",
    )  # fmt: skip
    return record, correct
