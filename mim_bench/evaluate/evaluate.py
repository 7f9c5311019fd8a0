"""One protocol on a run's encoder, and the record of what it found.

Every rank evaluates; rank 0 writes the record, with which images were right beside it.
"""

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from mim_bench.config.run import RunConfig
from mim_bench.evaluate.protocols import PROTOCOLS, Answer, Features, Subject
from mim_bench.records.record import Metric, PretrainFacts, Record, figure, top1, write
from mim_bench.records.run_folder import record_hash, record_path
from mim_bench.train import distributed, environment, loop
from mim_bench.train.backend import is_compiled
from mim_bench.train.progress import Stages


def evaluate(
    name: str,
    trained: Features,
    random: Features,
    folder: Path,
    stages: Stages,
    facts: PretrainFacts | None,
    command: str,
) -> None:
    """One protocol, on the encoder and, where that is one, on its random-weights control."""
    config, device = trained.config, trained.device
    protocol = PROTOCOLS[name]
    started, clock = datetime.now(UTC), time.perf_counter()
    key = record_hash(config, name)
    with stages.stage(name) as report:
        answer = protocol.run(Subject(trained, folder, key, report))
    control: tuple[Metric, ...] = ()
    if protocol.has_control:
        with stages.stage(f"{name}, random weights") as report:
            beside = Subject(random, folder / "control", f"{key} control", report)
            control = _metrics(protocol.run(beside), config)
    metrics = _metrics(answer, config)
    declared = config.evaluate.readout if protocol.needs_readout else metrics[0].readout
    record = Record(
        run_id=config.run_id,
        run_hash=config.hash,
        record_hash=key,
        target=config.target.name,
        preset=config.preset,
        seed=config.seed,
        protocol=name,
        protocol_version=protocol.version,
        declared_readout=declared,
        metrics=metrics,
        control=control,
        notes=answer.notes,
        curves=answer.curves,
        config=config.model_dump(mode="json"),
        data=trained.data.facts,
        pretrain=facts if protocol.needs_encoder else None,
        code=environment.code(),
        versions=environment.versions(),
        device=environment.device_facts(device),
        precision=loop.precision(device, config.runtime),
        compiled=is_compiled(device, config.runtime),
        seconds=time.perf_counter() - clock,
        started=started.isoformat(timespec="seconds"),
        command=command,
    )

    def keep() -> None:
        write(record_path(folder, name), record, answer.correct)
        for done in (folder / name, folder / "control"):
            shutil.rmtree(done, ignore_errors=True)  # checkpoints of a finished evaluation

    distributed.on_main(keep)


def _metrics(answer: Answer, config: RunConfig) -> tuple[Metric, ...]:
    accuracies = [top1(readout, correct) for readout, correct in answer.correct.items()]
    figures = [figure(name, value, config.speed.steps) for name, value in answer.figures.items()]
    return (*accuracies, *figures)
