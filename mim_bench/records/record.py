"""The record: a number with its proof. One JSON file for each (run, protocol).

Next to it lies `<protocol>.npz` with which test images were right under each readout, for paired tests.
"""

import hashlib
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from mim_bench.errors import UserError
from mim_bench.files import (
    file_sha256,
    parse_json,
    read_bytes,
    write_text,
)
from mim_bench.records.external import ExternalFacts
from mim_bench.records.packed import MAX_BYTES, read_packed, write_packed
from mim_bench.records.provenance import Code, Device
from mim_bench.schema import Frozen

SCHEMA = "mim_bench.record.1"


FRACTIONS = ("top1", "miou")
"""Metrics that are fractions, printed in per cent."""
MetricName = Literal[
    "top1", "miou", "images_per_s", "step_s", "target_s", "peak_gb", "step_flops", "train_flops"
]
LOWER_IS_BETTER = ("step_s", "target_s", "peak_gb", "step_flops", "train_flops")


class Metric(Frozen):
    """One number."""

    name: MetricName
    """`top1`: share of test images whose most likely class is right, a fraction. `miou`: mean over classes of the
    intersection of predicted and true pixels over their union, a fraction. Of a pre-training step:
    `images_per_s`; `step_s` and `target_s` in s, the whole and the target alone; `peak_gb` of memory;
    `step_flops`. `train_flops`: of all the images that a training from scratch saw."""
    readout: str
    """Layer and pooling of the features (`last/patch_mean`), with share and draw of the labels for few
    labels (`... 1% draw 0`); `last/patches` for a class a pixel; `model` for a trained classifier, `blocks=k`
    for one trained in part; `step` for a pre-training step."""
    value: float = Field(ge=0)
    stderr: float = Field(ge=0)
    """Standard error of an accuracy over test images: sqrt(p (1 - p) / n); of `miou` by bootstrap; else 0."""
    n: int = Field(ge=1)
    """Test images, or steps."""
    higher_is_better: bool = True

    @model_validator(mode="after")
    def _fraction(self) -> Self:
        if self.name in FRACTIONS and self.value > 1:
            raise ValueError(f"{self.name}={self.value}: a fraction")
        return self


class DataFacts(Frozen):
    """The images behind a number."""

    source: str
    fingerprint: str
    """sha256 over the content of all splits."""
    split: Literal["test", "tune"]
    """Split that was evaluated on; `tune` is a slice of the training split."""
    num_train_images: int
    num_evaluated_images: int
    num_skipped_images: int
    """Unreadable images left out."""
    limited: bool
    """True if `data.limit_images` cut the data: not comparable with full runs."""
    evaluated_on: str = ""
    """Origin of the evaluated images; empty in older records."""
    class_names: tuple[str, ...] | None = None
    """Class names by class index."""
    num_duplicates: int = 0
    """Evaluated images, of those compared, that are training images too."""


class PretrainFacts(Frozen):
    """Time, images and losses of a pre-training."""

    images_seen: int
    seconds: float
    """Wall time in s, over all restarts."""
    images_per_s: float
    final_loss: float | None
    """Mean over the last epoch."""
    epoch_losses: tuple[tuple[int, float], ...] = ()
    """Epoch, from 1, and mean loss over its logged steps: the learning curve."""
    first_batches: str
    """sha256 over images and masks of the first batches: equal for every target of a seed."""
    flops: float | None = None
    """FLOPs of the model, forward and backward, and of the target, a teacher included, over all images seen: matrix
    products, convolutions and attention, a multiplication and its addition as two. Unset in older records."""
    fit: dict[str, float] = Field(default_factory=dict)
    """Figures of the target's fit, such as codebook use, with `fit_seconds` and `fit_flops` of all that it trained;
    empty if it needed none."""
    fit_key: str | None = None
    """Hash of the fitted state that was used."""
    compiled: bool | None = None
    """True if the steps were compiled; unset in older records."""
    replayed: bool | None = None
    """True if the steps were replayed as one CUDA graph."""
    gate: dict[str, float] = Field(default_factory=dict)
    """Losses on views that training never saw: `model_loss`, and those that it has to beat, `mean_loss`,
    `copy_loss`, `ridge_loss`; `model_r2` and so on, the share of the mean's loss that is gone;
    `flat_share` of the hidden patches without contrast, and the losses without them. See `mim_bench.train.gate`."""
    code: Code | None = None
    """The source that pre-trained, where it is not known to be the record's own."""


class Record(Frozen):
    """The numbers of one protocol on one run, with their proof."""

    schema_version: Literal["mim_bench.record.1"] = SCHEMA
    run_id: str
    run_hash: str
    """sha256 of the run's identity."""
    record_hash: str
    """sha256 of identity, protocol settings and protocol version."""
    target: str
    preset: str
    seed: int
    protocol: str
    protocol_version: int
    declared_readout: str
    """Readout that a table prints by default, as in `metrics`; the others
    are there to show how far the choice matters. `mim_bench.records.measure` names every number."""
    metrics: tuple[Metric, ...] = Field(min_length=1)
    control: tuple[Metric, ...]
    """The same protocol on the same architecture with random weights; empty where that is no control."""
    notes: tuple[str, ...] = ()
    """Choices that a reader must know, such as cached features."""
    curves: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Readout -> accuracy after each epoch on labelled training images kept out of that training."""
    correct_sha256: str | None = None
    """sha256 of the file with the correctness of every image; unset where there is none, or in older records."""
    config: dict[str, Any]
    """The resolved config, all of it."""
    data: DataFacts
    pretrain: PretrainFacts | None
    """Unset where no pre-trained weight entered, or nothing is known of how it came to be."""
    external: ExternalFacts | None = None
    """Set for an encoder from outside (`eval`), whose record stands in no closed table."""
    code: Code
    versions: dict[str, str]
    device: Device
    precision: str
    compiled: bool
    """True if what the protocol times or trains is compiled: of pre-training's step alone; evaluations run eager."""
    seconds: float
    """Wall time of the protocol, its control included, in s."""
    started: str
    """UTC, ISO 8601."""
    command: str
    sha256: str | None = None
    """SHA-256 of all other fields; unset in older records."""


def top1(readout: str, correct: np.ndarray) -> Metric:
    """The metric of per-image correctness (N,) bool."""
    value = float(correct.mean())
    stderr = float(np.sqrt(value * (1 - value) / len(correct)))
    return Metric(name="top1", readout=readout, value=value, stderr=stderr, n=len(correct))


def step_metric(name: str, value: float, num_steps: int) -> Metric:
    """Metric of a value measured over steps of pre-training."""
    content = {"name": name, "readout": "step", "value": value, "stderr": 0.0, "n": num_steps}
    return Metric.model_validate(content | {"higher_is_better": name not in LOWER_IS_BETTER})


def write(path: Path, record: Record, correct: Mapping[str, np.ndarray]) -> None:
    """Writes a record and, next to it, per-image correctness: readout -> (N,) bool."""
    content = record.model_dump()
    if correct:
        arrays = path.with_suffix(".npz")
        write_packed(arrays, correct)
        content["correct_sha256"] = file_sha256(arrays)
    # validated once more, as a reader will
    unset = {"external"} if record.external is None else set()
    complete = Record.model_validate(content).model_dump_json(indent=1, exclude={"sha256"} | unset)
    body = complete.removesuffix("\n}")
    write_text(path, f'{body}{_SHA256}{_sha256(body.encode())}"\n}}\n')


_SHA256 = ',\n "sha256": "'
"""Separator between the content of a record's file and its hash."""


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def read(path: Path) -> Record:
    """A record from its file."""
    raw = read_bytes(path)
    content = parse_json(raw, path)
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA:
        raise UserError(f"{path} is no record of schema {SCHEMA}")
    body, separator, _ = raw.rpartition(_SHA256.encode())
    if content.get("sha256") is not None and not (separator and content["sha256"] == _sha256(body)):
        raise UserError(f"{path} was changed by hand: its content is not that of its sha256")
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is no valid record: {location}: {first['msg']}") from None


def check_correct(path: Path, record: Record) -> None:
    """Refuses the file with the correctness of every image if it is not the record's."""
    arrays = path.with_suffix(".npz")
    if record.correct_sha256 is None:
        read_correct(path, record)
        return
    if file_sha256(arrays, MAX_BYTES) != record.correct_sha256:
        raise UserError(
            f"{arrays} is damaged, or of another record than {path.name}: its sha256 differs"
        )


def read_correct(
    path: Path, record: Record | None = None, readouts: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Per-image correctness next to a record: readout -> (N,) bool, in the order of the test split.

    Args:
        record: the content of `path`, where both files have been read and checked (`check_correct`).
        readouts: those to read; by default all.
    """
    if record is None:
        record = read(path)
        if record.correct_sha256 is not None:
            check_correct(path, record)
    metrics = {metric.readout: metric for metric in record.metrics if metric.name == "top1"}
    if not metrics:
        return {}
    arrays = path.with_suffix(".npz")
    packed = read_packed(arrays, metrics if readouts is None else readouts)
    correct = {}
    for readout, bytes_of in packed.items():
        metric = metrics[readout]
        does_fit = bytes_of.dtype == np.uint8 and bytes_of.ndim == 1
        if does_fit and 8 * len(bytes_of) >= metric.n:
            correct[readout] = np.unpackbits(bytes_of, count=metric.n).view(bool)
            num_right = np.count_nonzero(correct[readout])
            does_fit = math.isclose(num_right / metric.n, metric.value, abs_tol=1e-8)
        if not does_fit or readout not in correct:
            raise UserError(f"{arrays} does not fit {path.name}: readout {readout}")
    return correct
