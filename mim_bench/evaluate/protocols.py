"""Runs one protocol on a run's encoder and writes its record; `mim_bench.config.protocol` says what each needs.

Every rank evaluates; rank 0 writes the record, and next to it which images were right.
"""

import json
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.run import RunConfig, digest
from mim_bench.evaluate.cache import Correctness, computed_once
from mim_bench.evaluate.context import EvalContext, Features, ProtocolResult
from mim_bench.lazy import import_object
from mim_bench.records import provenance
from mim_bench.records.external import ExternalFacts
from mim_bench.records.record import Metric, PretrainFacts, Record, step_metric, top1, write
from mim_bench.records.run_folder import record_hash, record_path
from mim_bench.train import backend, distributed, environment
from mim_bench.train.backend import is_compiled
from mim_bench.train.progress import Stages


def protocol_function(name: str) -> Callable[[EvalContext], ProtocolResult]:
    """The function that runs a protocol, imported now."""
    path = PROTOCOLS[name].function
    return import_object(path, f"protocol '{name}': {path}")


def evaluate(
    name: str,
    trained: Features,
    random: Features,
    folder: Path,
    stages: Stages,
    facts: PretrainFacts | None,
    command: str,
    external: ExternalFacts | None = None,
) -> None:
    """One protocol, on the encoder and, where that is one, on its random-weights control."""
    config, device = trained.config, trained.device
    spec, run = PROTOCOLS[name], protocol_function(name)
    started, clock = datetime.now(UTC), time.perf_counter()
    key = record_hash(config, name)
    with stages.stage(name) as report:
        result = run(EvalContext(trained, folder, key, report))
    control: tuple[Metric, ...] = ()
    if spec.has_control:
        with stages.stage(f"{name}, random weights") as report:
            untrained = EvalContext(random, folder / "control", f"{key} control", report)
            path = _control_path(name, untrained, external)
            arrays = computed_once(path, lambda: _arrays(run(untrained)))
            control = _metrics(_result(arrays), config)
    metrics = _metrics(result, config)
    declared = config.evaluate.readout if spec.has_readouts else metrics[0].readout
    record = Record(
        run_id=config.run_id,
        run_hash=config.hash,
        record_hash=key,
        target=config.target.name,
        preset=config.preset,
        seed=config.seed,
        protocol=name,
        protocol_version=spec.version,
        declared_readout=declared,
        metrics=metrics,
        control=control,
        notes=result.notes,
        curves=result.curves,
        config=config.model_dump(mode="json"),
        data=trained.data.facts,
        pretrain=facts if spec.needs_encoder else None,
        external=external,
        code=provenance.code(),
        versions=provenance.versions(),
        device=environment.device_facts(device),
        precision=backend.precision(device, config.runtime),
        compiled=name == "speed" and is_compiled(device, config.runtime),
        seconds=time.perf_counter() - clock,
        started=started.isoformat(timespec="seconds"),
        command=command,
    )

    def keep() -> None:
        write(record_path(folder, name), record, result.correct)
        remove_checkpoints(folder, name)

    distributed.on_main(keep)


def remove_checkpoints(folder: Path, name: str) -> None:
    """Removes what a finished protocol needed to go on after a stop."""
    for path in (folder / name, *folder.glob(f"{name}-*/"), folder / "control"):
        shutil.rmtree(path, ignore_errors=True)


def _control_path(name: str, context: EvalContext, external: ExternalFacts | None) -> Path:
    """File of the correctness of an untrained encoder: it is the same for every target of a seed."""
    config, spec = context.config, PROTOCOLS[name]
    sections = config.model_dump(mode="json", include={"data", "model", "seed", *spec.sections})
    sections["data"].pop("source")
    precision = backend.precision(context.device, config.runtime)
    parts = [name, spec.version, sections, precision, context.data.facts.fingerprint]
    if external is not None:  # what it is built of and fed with, the model's section does not say
        parts.append([external.architecture, external.mean, external.std, external.readouts])
    key = digest(parts)
    return context.folder.parent.parent / "controls" / f"{name}-{key[:16]}.npz"


_METRICS = "metrics"
"""Name of the metrics of another kind among the arrays that are kept, as JSON."""


def _arrays(result: ProtocolResult) -> Correctness:
    """Arrays that are kept of a result: correctness by readout, and metrics of another kind."""
    metrics_json = json.dumps([metric.model_dump() for metric in result.metrics])
    return result.correct | ({_METRICS: np.array(metrics_json)} if result.metrics else {})


def _result(arrays: Correctness) -> ProtocolResult:
    """The inverse of `_arrays`."""
    correct = {readout: values for readout, values in arrays.items() if readout != _METRICS}
    metrics = json.loads(str(arrays.get(_METRICS, "[]")))
    return ProtocolResult(correct, metrics=tuple(map(Metric.model_validate, metrics)))


def _metrics(result: ProtocolResult, config: RunConfig) -> tuple[Metric, ...]:
    accuracies = [top1(readout, correct) for readout, correct in result.correct.items()]
    step_metrics = [
        step_metric(name, value, config.speed.steps) for name, value in result.values.items()
    ]
    return (*accuracies, *step_metrics, *result.metrics)
