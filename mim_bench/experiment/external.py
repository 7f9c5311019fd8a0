"""Evaluating an encoder from outside under the protocols of a preset: division "external", never in a closed table.

Its records say which file it was, whose, how it was converted and how its input was normalised. They hold a config
like a run's, whose model section describes the encoder; its mask and pre-training sections have no effect.
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim_bench import rng
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.resolve import resolve, validated
from mim_bench.config.run import RunConfig, TargetConfig
from mim_bench.config.trainings import trainings
from mim_bench.data.run_data import Data, complete, open_data, warn_of_batches
from mim_bench.errors import UserError
from mim_bench.evaluate.context import Features
from mim_bench.evaluate.encoders.describe import facts_of, shape_of
from mim_bench.evaluate.encoders.named import PREFIX, open_named
from mim_bench.evaluate.features import chosen_readouts
from mim_bench.evaluate.load_encoder import LoadedEncoder, open_encoder
from mim_bench.evaluate.protocols import evaluate
from mim_bench.experiment.model_card import channel_text
from mim_bench.records.external import ExternalFacts
from mim_bench.records.record import Record, read
from mim_bench.records.run_folder import record_hash, record_path
from mim_bench.target import Geometry
from mim_bench.train import distributed, environment
from mim_bench.train.progress import Quiet, Stages

_ITS_OWN = ("model", "mask", "pretrain", "augment", "target")
"""Sections that settings cannot reach: the encoder is what it is."""
_ANY_TARGET = "pixel"
"""A config needs one to be resolved; it is replaced by what the encoder is."""


@dataclass(frozen=True)
class Evaluated:
    """Records of an encoder and where they lie."""

    folder: Path
    records: list[Record]
    loaded: LoadedEncoder


class ExternalFeatures(Features):
    """Features of an encoder with its own input statistics; grey images go into all of its channels."""

    def __init__(
        self, config: RunConfig, data: Data, loaded: LoadedEncoder, encoder: torch.nn.Module,
        device: torch.device, names: tuple[str, ...],
    ) -> None:  # fmt: skip
        super().__init__(config, data, encoder, device, names)  # pyright: ignore[reportArgumentType]
        shape, size = self.geometry, len(loaded.mean)
        self._input = Geometry(shape.image_size, shape.patch_size, size, loaded.mean, loaded.std)

    def normalize(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) or (B, 1, H, W) in [0, 1] -> (B, C, H, W)."""
        return self._input.normalize(images.expand(-1, self._input.in_chans, -1, -1))


def open_any(
    spec: str,
    *,
    image_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
    allow_partial: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> LoadedEncoder:
    """The encoder of a run folder, a file, or `timm:NAME`, with `@FILE` if its weights are at hand."""
    if spec.startswith(PREFIX):
        return open_named(spec, image_size=image_size, allow_partial=allow_partial, notify=notify)
    path = Path(spec).expanduser()
    return open_encoder(
        path, image_size=image_size, num_heads=num_heads, allow_partial=allow_partial
    )


@dataclass(frozen=True)
class Prepared:
    """An encoder ready for images."""

    config: RunConfig
    """Complete: data and protocols of a preset, model of the encoder."""
    data: Data
    loaded: LoadedEncoder
    facts: ExternalFacts
    features: ExternalFeatures


def prepare(
    spec: str,
    preset: str,
    overrides: Sequence[str] = (),
    *,
    readout: str = "",
    num_heads: int | None = None,
    allow_partial: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Opens an encoder and the images; arguments as for `evaluate_encoder`."""
    resolved = resolve(_ANY_TARGET, preset, overrides)
    _check(resolved.config, overrides)
    given_fields = {key for key, origin in resolved.origin.items() if origin == "command line"}
    size = resolved.config.data.image_size if "data.image_size" in given_fields else None
    loaded = open_any(
        spec, image_size=size, num_heads=num_heads, allow_partial=allow_partial, notify=notify
    )
    loaded = _with_statistics(loaded, resolved.config, given_fields)
    names = chosen_readouts(readout, loaded.encoder)
    facts = facts_of(loaded, names)
    for line in (
        f"{facts.family}: {facts.architecture}",
        facts.conversion,
        f"input normalised by mean {channel_text(facts.mean)} and std {channel_text(facts.std)}: "
        f"{facts.statistics_from}",
    ):
        notify(line)
    device = environment.choose_device(resolved.config.runtime.device)
    config = _config(resolved.config, facts, loaded)
    data = open_data(config, device)
    given_config = _normalised(config, data, loaded)
    config = complete(given_config, data)
    trained = trainings(config).keys() - {"pretrain"}
    warn_of_batches(given_config, config, trained, data.train.num_images)
    notify(data.summary)
    encoder = loaded.encoder.to(device)
    features = ExternalFeatures(config, data, loaded, encoder, device, names)
    return Prepared(config, data, loaded, facts, features)


def evaluate_encoder(
    spec: str,
    preset: str,
    overrides: Sequence[str] = (),
    *,
    out: Path = Path("evaluations"),
    stages: Stages | None = None,
    **options: Any,
) -> Evaluated:
    """Runs `evaluate.protocols` on an encoder; what is recorded already is read back.

    Args:
        spec: see `open_any`.
        overrides: `section.field=value` over the preset; `data.image_size`, `data.mean` and `data.std` over
            what the encoder was made for.
        out: folder that holds a folder an encoder.
        options: `readout`, readouts besides the default ones, or `all` (see `mim_bench.evaluate.features`);
            `num_heads` and `allow_partial` (see `open_encoder`); `notify`, called with lines for people.

    Raises:
        UserError: anything that the user can put right.
    """
    prepared = prepare(spec, preset, overrides, **options)
    config, names = prepared.config, prepared.features.names
    if config.evaluate.readout not in names:
        raise UserError(
            f"declared readout '{config.evaluate.readout}'; allowed: {', '.join(names)}"
        )
    folder, device = out / config.run_id, prepared.features.device
    untrained = _untrained(prepared.loaded, config.seed).to(device)
    random = ExternalFeatures(
        config, prepared.data, prepared.loaded, untrained, device, prepared.features.readouts
    )
    command = " ".join(["python -m mim_bench", *sys.argv[1:]])
    records = []
    for name in config.evaluate.protocols:
        path = record_path(folder, name)
        if not (path.is_file() and read(path).record_hash == record_hash(config, name)):
            evaluate(
                name,
                prepared.features,
                random,
                folder,
                stages or Quiet(),
                None,
                command,
                prepared.facts,
            )
        records.append(read(path))
    return Evaluated(folder, records, prepared.loaded)


def _check(config: RunConfig, overrides: Sequence[str]) -> None:
    if distributed.num_launched() > 1:
        raise UserError("eval is one process, to be started without torchrun")
    for text in overrides:
        if text.partition(".")[0] in _ITS_OWN:
            raise UserError(
                f"{text}: that is the encoder's own; settings of data and protocols can be given"
            )
    allowed = [name for name, spec in PROTOCOLS.items() if spec.needs_encoder]
    if wrong := [name for name in config.evaluate.protocols if name not in allowed]:
        raise UserError(
            f"protocol '{wrong[0]}' evaluates no encoder; allowed: {', '.join(allowed)}"
        )


def _with_statistics(
    loaded: LoadedEncoder, config: RunConfig, given_fields: set[str]
) -> LoadedEncoder:
    """The encoder with `data.mean` and `data.std` where they were given."""
    statistics = {}
    for field in ("mean", "std"):
        values = getattr(config.data, field)
        if f"data.{field}" in given_fields and values:
            size = len(loaded.mean)
            if len(values) not in (1, size):
                raise UserError(
                    f"data.{field} has {len(values)} values, the encoder takes {size} channels"
                )
            statistics |= {
                field: values * (size if len(values) == 1 else 1),
                "statistics_from": "given",
            }
    return replace(loaded, **statistics)


def _config(config: RunConfig, facts: ExternalFacts, loaded: LoadedEncoder) -> RunConfig:
    """The config of the record: data and protocols of the preset, model of the encoder."""
    shape = shape_of(loaded.encoder)
    size, _ = shape.pop("image_size"), shape.pop("in_chans")
    decoder = {"decoder_dim": shape["embed_dim"], "decoder_num_heads": shape["num_heads"]}
    content = config.model_dump()
    content["model"] |= {**shape, **decoder, "position": "learned"}
    content["mask"] |= {"sampling": "random", "ratio": 0.5}  # two patches are left of any four
    content["data"] |= {"image_size": size, "in_chans": None, "mean": None, "std": None}
    content["target"] = TargetConfig(
        name=f"external-{label(loaded.source)}",
        class_path="external",
        version=1,
        params=facts.model_dump(mode="json", exclude={"source", "paper"}),
    ).model_dump()
    return validated(content)


def _normalised(config: RunConfig, data: Data, loaded: LoadedEncoder) -> RunConfig:
    """The config with the encoder's statistics, where its channels are those of the images."""
    channels, num_expected = data.train.num_channels, len(loaded.mean)
    if channels != num_expected and channels != 1:
        raise UserError(
            f"{loaded.source} takes {num_expected} channels, the images of '{config.data.source}' have {channels}"
        )
    if channels != num_expected:
        return config
    content = config.model_dump()
    content["data"] |= {"mean": loaded.mean, "std": loaded.std}
    return validated(content)


def _untrained(loaded: LoadedEncoder, seed: int) -> torch.nn.Module:
    """The same architecture at initial weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.integer(seed=seed, stream="init external"))
        return loaded.build()


def label(source: str) -> str:
    """A short name for folders and tables: the file's, or its folder's where all files are called the same."""
    name = source.removeprefix(PREFIX)
    path = Path(name)
    if path.suffix in (".safetensors", ".bin") and path.stem in (
        "model",
        "pytorch_model",
        "encoder",
    ):
        name = path.resolve().parent.name
    elif not source.startswith(PREFIX):
        name = path.stem
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).strip("-.") or "encoder"
