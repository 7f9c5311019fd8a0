"""One run from config to records: data, fit, pre-train, evaluate, picture.

Calling it again continues where it stopped; a finished run only reads its records back. A run folder:

    config.json        the resolved config        pretrain.jsonl       learning curve
    manifest.json      where and with what        encoder.safetensors  timm's names
    pretrain.json      what pre-training took     model.safetensors    encoder, decoder and head
    records/           one JSON and one npz a protocol
    picture.png        target and prediction on a few images
"""

import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from mim_bench.config.resolve import explain
from mim_bench.config.run import RunConfig
from mim_bench.config.trainings import check_local_batches, lr_lines, needs_pretraining, trainings
from mim_bench.data.run_data import Data, complete, open_data, warn_of_batches
from mim_bench.errors import UserError
from mim_bench.evaluate.context import Features
from mim_bench.evaluate.flops import step as step_flops
from mim_bench.evaluate.protocols import evaluate, remove_checkpoints
from mim_bench.evaluate.reconstruction import draw_picture, sample
from mim_bench.experiment import cost
from mim_bench.experiment.manifest import write_manifest
from mim_bench.files import check_folder, read_json, write_text
from mim_bench.model.mae import MaskedAutoencoder, build_encoder
from mim_bench.records import provenance
from mim_bench.records.record import PretrainFacts, Record, check_correct, read
from mim_bench.records.run_folder import (
    check,
    claim,
    lock,
    read_manifest,
    record_hash,
    record_path,
    removed_unless_begun,
    seal,
)
from mim_bench.targets.build import geometry
from mim_bench.text import duration
from mim_bench.train import distributed, environment, preemption, pretrain
from mim_bench.train.backend import is_compiled
from mim_bench.train.fit import Fitted, fitted_target
from mim_bench.train.gate import gate_losses
from mim_bench.train.progress import Quiet, Stages
from mim_bench.train.training import Outcome

_logger = logging.getLogger(__name__)
_LONG_FLOPS = 3e14
"""An hour at 0.1 TFLOP/s; the time of less is not estimated."""


@dataclass(frozen=True)
class Result:
    """Folder and records of a run."""

    folder: Path
    records: list[Record]
    was_finished: bool
    """True if there was nothing left to do."""


def run(config: RunConfig, *, out: str | Path = "runs", force: bool = False) -> list[Record]:
    """Fits the target, pre-trains, evaluates; returns one record a protocol. See `execute`."""
    return execute(config, out=out, force=force).records


@preemption.received_elsewhere()
def execute(
    config: RunConfig,
    *,
    out: str | Path = "runs",
    force: bool = False,
    stages: Stages | None = None,
    notify: Callable[[str], None] = lambda line: None,
    command: str | None = None,
) -> Result:
    """Fits the target, pre-trains, evaluates and draws; records come in the order of `evaluate.protocols`.

    Every rank of a run calls it (see `mim_bench.train.distributed`); rank 0 alone writes and is watched.

    Args:
        out: folder that holds run folders, or an existing run folder.
        force: start from nothing, even if the run is finished.
        stages: progress is reported to it; by default to nobody.
        notify: called with a line for people, such as `blr -> lr`; by default nothing.
        command: command line that the record names as its origin; by default this process's command line.

    Raises:
        UserError: anything that the user can put right.
    """
    stages = stages if stages and distributed.is_main() else Quiet()
    check_folder(Path(out))
    device = environment.choose_device(config.runtime.device)
    torch.backends.cuda.matmul.allow_tf32 = config.runtime.tf32
    torch.backends.cudnn.allow_tf32 = config.runtime.tf32
    with stages.stage("read images"):
        data = open_data(config, device)
    requested, config = config, complete(config, data)
    warn_of_batches(requested, config, trainings(config), data.train.num_images)
    check_local_batches(trainings(config), distributed.size())
    if needs_pretraining(config) and not config.runtime.shard:
        environment.check_memory(config, device)
    with ExitStack() as locks:
        distributed.on_main(lambda: locks.enter_context(lock(Path(out), config)))
        return _execute(config, data, device, Path(out), force, stages, notify, command)


def _execute(
    config: RunConfig,
    data: Data,
    device: torch.device,
    out: Path,
    force: bool,
    stages: Stages,
    notify: Callable[[str], None],
    command: str | None,
) -> Result:
    folder = distributed.on_main(lambda: claim(out, config, force=force))
    if distributed.on_main(lambda: is_finished(folder, config)):
        distributed.on_main(lambda: _check(folder))
        records = [read(record_path(folder, name)) for name in config.evaluate.protocols]
        return Result(folder, records, was_finished=True)
    origin = command or " ".join(["python -m mim_bench", *sys.argv[1:]])
    with removed_unless_begun(folder) if distributed.is_main() else nullcontext():
        if distributed.is_main():
            for line in (data.summary, *lr_lines(config), *_long_lines(folder, config, data)):
                notify(line)
        records = _records(config, data, device, folder, stages, origin)
    return Result(folder, records, was_finished=False)


def _records(
    config: RunConfig, data: Data, device: torch.device, folder: Path, stages: Stages, origin: str
) -> list[Record]:
    """Trains and evaluates what is not there yet."""
    distributed.on_main(lambda: write_manifest(folder, config, data, device, origin))
    untrained = build_encoder(config.model, geometry(config), seed=config.seed).to(device)
    random = Features(config, data, untrained, device)
    trained, facts = random, None
    if needs_pretraining(config):
        with stages.stage(f"fit {config.target.name}"):
            fitted = distributed.main_first(
                lambda: fitted_target(config, data, folder.parent, device)
            )
        model, facts = _pretrained(config, data, fitted, folder, device, stages)
        # the picture comes first: it shows within seconds whether the model learned anything
        distributed.on_main(lambda: _draw(folder, config, data, fitted, model, device))
        trained = Features(config, data, model.encoder, device)
    records = []
    for name in config.evaluate.protocols:
        path = record_path(folder, name)
        if not distributed.on_main(lambda path=path, name=name: _is_current(path, config, name)):
            evaluate(name, trained, random, folder, stages, facts, origin)
        records.append(distributed.on_main(lambda path=path: read(path)))
    distributed.on_main(
        lambda: check(folder, content=False)
    )  # somebody may have deleted it meanwhile
    distributed.on_main(lambda: _remove_checkpoints(folder, config.evaluate.protocols))
    return records


def _long_lines(folder: Path, config: RunConfig, data: Data) -> list[str]:
    """Line on how long the rest of the run will take, where that is hours; estimated from a few steps."""
    estimated = cost.estimate(config, data)
    is_trained = (folder / "pretrain.json").is_file()
    flops = (0.0 if is_trained else estimated.pretrain_flops) + sum(
        flops
        for name, flops in estimated.protocol_flops.items()
        if not _is_current(record_path(folder, name), config, name)
    )
    if flops < _LONG_FLOPS:
        return []
    seconds = flops / cost.device_speed(config, data)
    return [f"this run will take about {duration(seconds)}"] if seconds >= 3600 else []


def _draw(
    folder: Path,
    config: RunConfig,
    data: Data,
    fitted: Fitted,
    model: MaskedAutoencoder,
    device: torch.device,
) -> None:
    path = folder / "picture.png"
    if not path.exists():
        draw_picture(path, config, sample(config, data, fitted.target, model, device))
        seal(folder, path.name)


_WEIGHTS = ("encoder.safetensors", "model.safetensors", "target.safetensors")


def _check(folder: Path) -> None:
    """Checks that the files of a finished run are those that were written."""
    check(folder)
    for path in (folder / "records").glob("*.json"):
        check_correct(path, read(path))
    _remove_checkpoints(folder, [path.stem for path in (folder / "records").glob("*.json")])


def _remove_checkpoints(folder: Path, protocols: Sequence[str]) -> None:
    """Removes checkpoints of finished trainings, which a kill may have left."""
    for name in protocols:
        remove_checkpoints(folder, name)
    for name in ("control", "pretrain"):
        shutil.rmtree(folder / name, ignore_errors=True)


def is_finished(folder: Path, config: RunConfig) -> bool:
    """True if every record of `evaluate.protocols` is there and, where it was to be pre-trained, the picture."""
    names = config.evaluate.protocols
    if not all(_is_current(record_path(folder, name), config, name) for name in names):
        return False
    files = ("pretrain.json", "picture.png") if needs_pretraining(config) else ()
    return all((folder / name).is_file() for name in files)


def _is_current(path: Path, config: RunConfig, protocol: str) -> bool:
    return path.is_file() and read(path).record_hash == record_hash(config, protocol)


def _pretrained(
    config: RunConfig,
    data: Data,
    fitted: Fitted,
    folder: Path,
    device: torch.device,
    stages: Stages,
) -> tuple[MaskedAutoencoder, PretrainFacts]:
    """The pre-trained model: trained now, resumed, or read back."""
    path = folder / "pretrain.json"
    if distributed.on_main(path.is_file):
        distributed.on_main(lambda: check(folder, path.name, *_WEIGHTS))
        model = pretrain.build_model(config, fitted.target.dim).to(device)
        pretrain.load_weights(folder, model, fitted.target)
        return model, _facts(path)
    with stages.stage(f"pre-train {config.target.name}") as report:
        model, outcome = pretrain.pretrain(config, data, fitted.target, folder, device, report)
    with stages.stage("gate"):
        gate = distributed.on_main(lambda: gate_losses(config, data, fitted.target, model, device))
    flops = outcome.images_seen * step_flops(config)
    is_fast = is_compiled(device, config.runtime)
    facts = distributed.on_main(lambda: _keep_facts(path, outcome, flops, is_fast, fitted, gate))
    return model, facts


def _facts(path: Path) -> PretrainFacts:
    try:
        return PretrainFacts.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {explain(error)}") from None


def _keep_facts(
    path: Path,
    outcome: Outcome,
    flops: int,
    compiled: bool,
    fitted: Fitted,
    gate: dict[str, float],
) -> PretrainFacts:
    folder = path.parent
    manifest = read_manifest(folder)
    losses = pretrain.epoch_losses(folder)
    facts = PretrainFacts(
        images_seen=outcome.images_seen,
        seconds=outcome.seconds,
        images_per_s=outcome.images_per_s,
        final_loss=losses[-1][1] if losses else None,
        epoch_losses=losses,
        first_batches=manifest["first_batches"],
        flops=float(flops),
        compiled=compiled,
        replayed=outcome.replayed,
        fit=fitted.values,
        fit_key=fitted.key,
        gate=gate,
        code=provenance.code(),
    )
    write_text(path, facts.model_dump_json(indent=1) + "\n")
    seal(folder, path.name, *_WEIGHTS)
    shutil.rmtree(folder / "pretrain", ignore_errors=True)  # checkpoints: the weights are saved now
    return facts
