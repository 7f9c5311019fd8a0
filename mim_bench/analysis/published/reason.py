"""Reasons why a published number and a measured one are not comparable: the difference of their settings.

What a published row leaves out is in `recipes/*.toml`, where its paper or its code states it; a setting that
nobody states is no difference.
"""

import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mim_bench.analysis.published.rows import PublishedRow
from mim_bench.config.resolve import flatten
from mim_bench.config.source import SOURCES
from mim_bench.records.record import Record
from mim_bench.schema import Frozen

_SIZES = {
    (192, 12, 3): "T", (384, 12, 6): "S", (768, 12, 12): "B", (1024, 24, 16): "L", (1280, 32, 16): "H",
}  # fmt: skip
"""Width, depth, heads (ViT's and DeiT's papers) -> size."""
_TARGETS = {
    "pixel": "pixel (w/o norm)",
    "norm_pixel": "pixel (w/ norm)",
    "hog": "HOG",
    "pca": "PCA",
}
_DALLE = "dVAE token of DALL-E"
_ALIASES = {"pixel L1": "pixel (w/o norm), l1 loss", "dVAE token": _DALLE}
"""Published target -> its full name; BEiT (section 2.1) and MAE (Table 1d) take DALL-E's tokenizer."""


class Facts(Frozen):
    """Settings of the published rows that meet every condition; an empty condition is always met."""

    origins: tuple[str, ...] = ()
    """Paper or repository that printed the number, not one that it quotes."""
    methods: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    backbone: str = ""
    """Regular expression, searched for."""
    variant: str = ""
    """Regular expression, searched for."""
    fields: dict[str, Any] = {}
    """Dotted field of the config -> published value."""
    mask_tokens: str | None = None
    readout: str | None = None
    differs: dict[str, str] = {}
    """Aspect -> `measured, not published`, where nothing here does as the row does."""

    def matches(self, row: PublishedRow) -> bool:
        """True if the row meets every condition."""
        return (
            (not self.origins or (row.origin in self.origins and "quoting" not in row.paper))
            and (not self.methods or row.method in self.methods)
            and (not self.protocols or _protocol(row) in self.protocols)
            and bool(re.search(self.backbone, row.backbone or ""))
            and bool(re.search(self.variant, row.variant or ""))
        )


@functools.cache
def all_facts() -> tuple[Facts, ...]:
    """The facts of every recipe file, in the order of the files' names."""
    return tuple(
        Facts.model_validate(facts | {"fields": flatten(facts.get("fields", {}))})
        for path in sorted((Path(__file__).parent / "recipes").glob("*.toml"))
        for facts in tomllib.loads(path.read_text(encoding="utf-8"))["facts"]
    )


def published_facts(row: PublishedRow) -> Facts:
    """All facts of a row in one; later facts win."""
    fields: dict[str, Any] = {}
    other_facts: dict[str, Any] = {}
    differs: dict[str, str] = {}
    for facts in filter(lambda facts: facts.matches(row), all_facts()):
        for field, value in facts.fields.items():
            if value == "$1":
                value = float(re.findall(facts.variant, row.variant or "")[0])
            value = tuple(value) if isinstance(value, list) else value
            fields[field] = None if value == "None" else value
        other_facts |= facts.model_dump(include={"mask_tokens", "readout"}, exclude_none=True)
        differs |= facts.differs
    return Facts(fields=fields, differs=differs, **other_facts)


def reasons(row: PublishedRow, record: Record) -> dict[str, str]:
    """Reasons why two numbers are not comparable: aspect -> `measured, not published`; empty: they are.

    Which readout of a record, or which ratio of two, is printed next to a row is the caller's matter.
    """
    config, variant, protocol = record.config, row.variant or "", _protocol(row)
    model, mask, facts = config["model"], config["mask"], published_facts(row)
    differences: dict[str, str] = {}

    def compare(aspect: str, measured: Any, published: Any, unit: str = "") -> None:
        if published is not None and measured != published:
            differences[aspect] = f"{measured}{unit}, not {published}"

    compare("protocol", record.protocol, protocol)
    if record.protocol == "speed":
        compare("metric", "time of a step", "hours" if row.metric == "hours" else None)
        tpus = re.search(r"\d+ TPU[^,]*", variant)
        compare("device", record.device.name, tpus and tpus[0])
    else:
        compare("data", _data(record), _published_data(row))
    compare("model", _model(model, row.backbone), row.backbone)
    height, width = config["data"]["image_size"]
    compare("image size", height if height == width else f"{height}x{width}", row.image_size, " px")
    if _is_pretrained_here(record, protocol):
        if record.protocol != "speed":
            compare("epochs", config["pretrain"]["epochs"], row.pretrain_epochs, " epochs")
        pairs = (mask["sampling"], row.mask_sampling), (mask["ratio"], row.mask_ratio)
        compare("mask", *_join(pairs, " "))
        if row.decoder_depth is not None:
            compare("decoder", *_decoder(model, row))
        compare("mask tokens", model["mask_tokens"], facts.mask_tokens)
        compare("target", *_target(config["target"], row))
        differences |= {k: v for k, v in facts.differs.items() if k == "loss"}
    if record.protocol == protocol:
        compare("readout", _readout(record), facts.readout)
        differences |= {k: v for k, v in facts.differs.items() if k == "selection"}
    if recipe := _recipe_differences(record, facts, protocol):
        differences["recipe"] = "; ".join(recipe)
    return differences


def _is_pretrained_here(record: Record, protocol: str) -> bool:
    """True if the pre-training is a setting of the number, rather than none or somebody else's."""
    return "scratch" not in (record.protocol, protocol) and record.external is None


def _protocol(row: PublishedRow) -> str:
    """The protocol here that measures the same; MAE's Figure 9 begins and ends with another."""
    if row.method.startswith("supervised from scratch"):
        return "scratch"
    for text, protocol in (("= linear probing", "linear"), ("= full fine-tuning", "finetune")):
        if text in (row.variant or ""):
            return protocol
    return "partial" if row.protocol == "partial-k" else row.protocol


def _data(record: Record) -> str:
    """Name, and what of it was used where that is not all."""
    facts, spec = record.data, SOURCES[record.data.source.partition(":")[0]]
    name, num_train = spec.title, spec.size.num_train_images if spec.size else 0
    if facts.split != "test":
        name += ", a slice of training to evaluate"
    elif facts.limited or facts.num_train_images + facts.num_skipped_images < num_train:
        name += f", {facts.num_train_images:,} training images"
    return name


def _published_data(row: PublishedRow) -> str:
    """Pre-trained on and, where that is another set, evaluated on."""
    named = re.search(r"\((.+)\)", row.metric)
    evaluated = named[1] if named else "ImageNet-1K"
    pretrained = (row.pretrain_data or evaluated).partition(" (")[0]
    return pretrained if pretrained == evaluated else f"{pretrained}, then {evaluated}"


def _model(model: Mapping[str, Any], backbone: str | None) -> str:
    """`ViT-B/16`, else `ViT depth x width / patch`; the published name where it means the same."""
    width, depth, heads, patch = (
        model[key] for key in ("embed_dim", "depth", "num_heads", "patch_size")
    )
    if f"({depth}x{width}, patch {patch})" in (backbone or ""):
        return str(backbone)
    size = _SIZES.get((width, depth, heads))
    name = f"ViT-{size}/{patch}" if size else f"ViT {depth} x {width} / {patch}"
    if not size and width % 64 == 0 and heads != width // 64:
        name += f", {heads} heads"
    return name if model["mlp_ratio"] == 4 else f"{name}, MLP ratio {model['mlp_ratio']:g}"


def _join(pairs: Sequence[tuple[Any, Any]], by: str) -> tuple[str, str | None]:
    """Measured and published values -> one text each, of what was published."""
    stated = [pair for pair in pairs if pair[1] is not None]
    measured, published = (by.join(str(pair[i]) for pair in stated) for i in (0, 1))
    return measured, published or None


def _decoder(model: Mapping[str, Any], row: PublishedRow) -> tuple[str, str | None]:
    pairs = (model["decoder_depth"], row.decoder_depth), (model["decoder_dim"], row.decoder_width)
    measured, published = _join(pairs, " x ")
    if model["mask_tokens"] == "encoder_light" or model["decoder_depth"] == 0:
        measured = "none"
    return measured, "none" if row.decoder_depth == 0 else published


def _target(target: Mapping[str, Any], row: PublishedRow) -> tuple[str, str | None]:
    params, module_name = (
        target["params"],
        target["class_path"].partition(":")[0].rpartition(".")[2],
    )
    label: str = _TARGETS.get(module_name) or target["name"]
    if module_name == "dvae":
        description = f"dVAE token of {params['vocab_size']} entries fitted to the run's images"
        label = _DALLE if params["weights"] else description
    if params.get("loss", "mse") != "mse":
        label += f", {params['loss']} loss"
    return label, _ALIASES.get(row.target or "", row.target)


def _readout(record: Record) -> str:
    """Features that a probe or a fine-tuned head reads."""
    if record.protocol != "linear":
        return "mean of patch tokens"
    layer, pooling = record.declared_readout.split("/")
    features = "class token" if pooling == "cls" else "mean of patch tokens"
    return (
        f"{features} after block {record.config['model']['depth'] // 2}"
        if layer == "middle"
        else features
    )


def _recipe_differences(record: Record, facts: Facts, protocol: str) -> list[str]:
    """`field measured, not published` for every known field of the sections that both went through."""
    used = {"partial": ["finetune"], "speed": []}.get(protocol, [protocol])
    sections = used if record.protocol == protocol else []
    if _is_pretrained_here(record, protocol):
        sections += ["model"] if protocol == "speed" else ["pretrain", "augment", "model", "target"]
        sections += ["mask"] if record.config["mask"]["sampling"] == "block" else []
    fields = flatten(record.config)
    random_size = facts.fields.get("augment.crop") == fields["augment.crop"] == "random_size"
    differences = []
    for field, published in facts.fields.items():
        if field not in fields or field.partition(".")[0] not in sections:
            continue
        if protocol == "partial" and field == "finetune.epochs":
            continue  # the best of three lengths: `selection`
        measured = fields[field]
        measured = tuple(measured) if isinstance(measured, list) else measured
        same = bool(measured) if published == "on" else measured == published
        if not same and (field != "augment.crop_scale" or random_size):
            differences.append(f"{field} {measured}, not {published}")
    if "weights" in facts.differs and {"finetune", "scratch"} & set(sections):
        differences.append(facts.differs["weights"])
    return differences
