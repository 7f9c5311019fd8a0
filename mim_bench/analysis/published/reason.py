"""Why a published number and a measured one are not comparable, from the two settings.

What a published row leaves out comes from the facts below, where the paper or its code says it; what nobody
says is no difference.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mim_bench.analysis.published.rows import PublishedRow
from mim_bench.config.resolve import flatten
from mim_bench.config.source import SOURCES
from mim_bench.records.record import Record

_SCRATCH = "supervised from scratch"
_CIFAR_CODE = ("IcarusWizard/MAE", "Kedreamix/MAE-for-CIFAR")

# ---- facts that the rows leave out: dotted field of the config -> published value ----


def _facts(section: str, **values: Any) -> dict[str, Any]:
    return {f"{section}.{name}": value for name, value in values.items()}


# fmt: off
_CROP = _facts("augment", crop="random_size", flip=0.5, color_jitter=0.0)
_STRONG = _facts(
    "finetune", smoothing=0.1, mixup=0.8, cutmix=1.0, betas=(0.9, 0.999), weight_decay=0.05,
    rand_augment="rand-m9-mstd0.5-inc1", holdout_fraction=0.0,
)
_MAE = {  # appendix A.1, Tables 8 to 10
    **_CROP, **_facts("augment", crop_scale=(0.2, 1.0)), **_facts("model", position="sincos"),
    **_facts("pretrain", batch_size=4096, blr=1.5e-4, min_lr=0.0, warmup_epochs=40, weight_decay=0.05,
             clip_norm=None, betas=(0.9, 0.95)),
    **_facts("linear", epochs=90, batch_size=16384, blr=0.1, warmup_epochs=10, weight_decay=0.0,
             momentum=0.9, augment=True),
    **_STRONG,
    **_facts("finetune", batch_size=1024, blr=1e-3, warmup_epochs=5, layer_decay=0.75, erasing=0.0),
}
_MAE_SCRATCH = {  # Table 11
    **_STRONG,
    **_facts("finetune", batch_size=4096, blr=1e-4, warmup_epochs=20, weight_decay=0.3, betas=(0.9, 0.95)),
}
_BEIT = {  # microsoft/unilm, beit/README.md; learning rate 1.5e-3 at 2048 images
    **_facts("pretrain", batch_size=2048, blr=1.875e-4, warmup_epochs=10),
    **_facts("model", position="relative"),
}
_MASKFEAT = {  # facebookresearch/SlowFast, configs/masked_ssl/in1k_VIT_B_MaskFeat_{PT,FT}.yaml
    **_CROP, **_facts("augment", crop_scale=(0.5, 1.0)),
    **_facts("mask", block_min_patches=15, block_min_aspect=0.3),
    **_facts("pretrain", blr=2e-4, min_lr=1e-6, warmup_epochs=30, weight_decay=0.05, clip_norm=0.02),
    **_STRONG,
    **_facts("finetune", epochs=100, blr=1e-3, warmup_epochs=20, layer_decay=0.65, drop_path=0.1,
             erasing=0.25),
    **_facts("target.params", num_bins=9, normalize=True, gaussian_window=0),
}
_CIFAR = {  # IcarusWizard/MAE, mae_pretrain.py, train_classifier.py, model.py; Kedreamix's is a copy
    **_facts("augment", crop="none", flip=0.0), **_facts("model", position="learned", num_heads=3),
    **_facts("pretrain", batch_size=4096, blr=1.5e-4, warmup_epochs=200, betas=(0.9, 0.95)),
    **_facts("finetune", epochs=100, batch_size=128, blr=1e-3, warmup_epochs=5, mixup=0.0, cutmix=0.0,
             rand_augment=None, crop_scale=(1.0, 1.0)),
}
_RECIPES = {
    ("MAE", "MAE"): _MAE, ("MAE", _SCRATCH): _MAE_SCRATCH, ("MAE", "BEiT"): _BEIT,
    ("MaskFeat", "MaskFeat"): _MASKFEAT,
    **{(origin, method): _CIFAR for origin in _CIFAR_CODE for method in ("MAE", _SCRATCH)},
}
"""(where it was printed, method) -> recipe. SimMIM's rows are on Swin, which the model says."""
_BY_SIZE = {
    "MAE": {"B": (100, 0.1), "L": (50, 0.1), "H": (50, 0.2)},
    _SCRATCH: {"B": (300, 0.1), "L": (200, 0.2), "H": (200, 0.2)},
}
"""Fine-tuning epochs and drop path in MAE's Tables 9 and 11."""
_IN_VARIANT: tuple[tuple[str, str, Any], ...] = (
    (r"([\d.]+) fine-tuning epochs", "finetune.epochs", None),
    (r"mixup ([\d.]+)", "finetune.mixup", None),
    (r"cutmix ([\d.]+)", "finetune.cutmix", None),
    (r"(\d+) largest patch-space PCA", "target.params.num_components", None),
    (r"none \(center crop, no flip\)", "augment.crop", "none"),
    (r"none \(center crop, no flip\)", "augment.flip", 0.0),
    (r"crop, fixed size", "augment.crop", "fixed_size"),
    (r"crop \+ color jitter", "augment.color_jitter", "on"),
)
"""Pattern in a row's variant, field, value; None: the number in the pattern; "on": any but 0."""
_VITS = {(192, 12, 3): "T", (384, 12, 6): "S", (768, 12, 12): "B", (1024, 24, 16): "L", (1280, 32, 16): "H"}
"""Width, depth, heads (ViT's and DeiT's papers) -> size."""
_MASK_TOKENS = {"MAE": "decoder"} | dict.fromkeys(("BEiT", "SimMIM", "MaskFeat"), "encoder_light")
_TARGETS = {"pixel": "pixel (w/o norm)", "norm_pixel": "pixel (w/ norm)", "hog": "HOG", "pca": "PCA"}
_DALLE = "dVAE token of DALL-E"
_ALIASES = {"pixel L1": "pixel (w/o norm), l1 loss", "dVAE token": _DALLE}
"""Of published targets; BEiT (section 2.1) and MAE (Table 1d) take DALL-E's tokenizer."""

# fmt: on
# ---- the comparison ----


def reasons(row: PublishedRow, record: Record) -> dict[str, str]:
    """Why the two numbers are not comparable: aspect -> `measured, not published`; empty: they are.

    Which readout of a record, or which ratio of two, stands beside a row is the caller's matter.
    """
    config, variant, protocol = record.config, row.variant or "", _protocol(row)
    model, mask = config["model"], config["mask"]
    found: dict[str, str] = {}

    def compare(aspect: str, measured: Any, published: Any, unit: str = "") -> None:
        if published is not None and measured != published:
            found[aspect] = f"{measured}{unit}, not {published}"

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
    if "scratch" not in (record.protocol, protocol):
        if record.protocol != "speed":
            compare("epochs", config["pretrain"]["epochs"], row.pretrain_epochs, " epochs")
        pairs = (mask["sampling"], row.mask_sampling), (mask["ratio"], row.mask_ratio)
        compare("mask", *_join(pairs, " "))
        if row.decoder_depth is not None:
            compare("decoder", *_decoder(model, row))
        place = "encoder" if "encoder w/ [M]" in variant else _MASK_TOKENS.get(row.method)
        compare("mask tokens", model["mask_tokens"], place)
        compare("target", *_target(config["target"], row))
        if "loss on all pixels" in variant:
            compare("loss", "hidden patches", "all patches")
        if "one masked patch missing from the loss" in variant:
            compare("loss", "all hidden patches", "all but one")
    if record.protocol == protocol:
        compare("readout", *_readout(record, row))
        if "best epoch on test" in variant:
            compare("selection", "last epoch", "best epoch on the test set")
        if protocol == "partial":
            compare("selection", "one length", "the best of 50, 100 and 200 epochs")
    if differing := _differing(record, row, protocol):
        found["recipe"] = "; ".join(differing)
    return found


def _protocol(row: PublishedRow) -> str:
    """The protocol here that measures the same; MAE's Figure 9 begins and ends with another."""
    if row.method.startswith(_SCRATCH):
        return "scratch"
    for text, protocol in (("= linear probing", "linear"), ("= full fine-tuning", "finetune")):
        if text in (row.variant or ""):
            return protocol
    return "partial" if row.protocol == "partial-k" else row.protocol


def _data(record: Record) -> str:
    """Name, and what of it was used where that is not all."""
    facts, spec = record.data, SOURCES[record.data.source.partition(":")[0]]
    name, whole = spec.title, spec.size.num_train_images if spec.size else 0
    if facts.split != "test":
        name += ", a slice of training to evaluate"
    elif facts.limited or facts.num_train_images + facts.num_skipped_images < whole:
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
    size = _VITS.get((width, depth, heads))
    name = f"ViT-{size}/{patch}" if size else f"ViT {depth} x {width} / {patch}"
    if not size and width % 64 == 0 and heads != width // 64:
        name += f", {heads} heads"
    return name if model["mlp_ratio"] == 4 else f"{name}, MLP ratio {model['mlp_ratio']:g}"


def _join(pairs: Sequence[tuple[Any, Any]], by: str) -> tuple[str, str | None]:
    """Measured and published values -> one text each, of what was published."""
    known = [pair for pair in pairs if pair[1] is not None]
    measured, published = (by.join(str(pair[i]) for pair in known) for i in (0, 1))
    return measured, published or None


def _decoder(model: Mapping[str, Any], row: PublishedRow) -> tuple[str, str | None]:
    pairs = (model["decoder_depth"], row.decoder_depth), (model["decoder_dim"], row.decoder_width)
    measured, published = _join(pairs, " x ")
    if model["mask_tokens"] == "encoder_light" or model["decoder_depth"] == 0:
        measured = "none"
    return measured, "none" if row.decoder_depth == 0 else published


def _target(target: Mapping[str, Any], row: PublishedRow) -> tuple[str, str | None]:
    params, kind = target["params"], target["class_path"].partition(":")[0].rpartition(".")[2]
    label: str = _TARGETS.get(kind) or target["name"]
    if kind == "dvae":
        own = f"dVAE token of {params['vocab_size']} words fitted to the run's images"
        label = _DALLE if params["weights"] else own
    if params.get("loss", "mse") != "mse":
        label += f", {params['loss']} loss"
    return label, _ALIASES.get(row.target or "", row.target)


def _readout(record: Record, row: PublishedRow) -> tuple[str, str | None]:
    """Features of a probe: MAE, A.1; BEiT, run_linear_eval.py; SimMIM, issue 14. Fine-tuning: the code."""
    tuned = "mean of patch tokens"
    if record.protocol != "linear":
        return tuned, "class token" if row.origin in _CIFAR_CODE else None
    layer, pooling = record.declared_readout.split("/")
    measured = "class token" if pooling == "cls" else tuned
    if layer == "middle":
        measured += f" after block {record.config['model']['depth'] // 2}"
    block = {"BEiT ViT-B/16": 9, "BEiT ViT-L/16": 14, "SimMIM ViT-B/16": 8}.get(
        f"{row.method} {row.backbone}"
    )
    if row.method == "MAE":
        return measured, "class token"
    own = block and "MAE authors" not in (row.variant or "")
    return measured, f"{tuned} after block {block}" if own else None


def _differing(record: Record, row: PublishedRow, protocol: str) -> list[str]:
    """`field measured, not published` for every known field of the parts that both went through."""
    facts = dict(_RECIPES.get((row.origin, row.method), {}) if "quoting" not in row.paper else {})
    size = (row.backbone or "")[4:5]
    if row.origin == "MAE" and facts and size in _BY_SIZE.get(row.method, {}):
        epochs, drop_path = _BY_SIZE[row.method][size]
        facts |= _facts("finetune", epochs=epochs, drop_path=drop_path)
    for pattern, field, value in _IN_VARIANT:
        if match := re.search(pattern, row.variant or ""):
            facts[field] = float(match[1]) if value is None else value
    if protocol == "partial":
        facts.pop("finetune.epochs", None)  # the best of three lengths: `selection`
    used = {"scratch": ["finetune"], "partial": ["finetune"], "speed": []}.get(protocol, [protocol])
    parts = used if record.protocol == protocol else []
    if "scratch" not in (record.protocol, protocol):
        parts += ["model"] if protocol == "speed" else ["pretrain", "augment", "model", "target"]
        parts += ["mask"] if record.config["mask"]["sampling"] == "block" else []
    fields = flatten(record.config)
    random_size = facts.get("augment.crop") == fields["augment.crop"] == "random_size"
    differing = []
    for field, published in facts.items():
        if field not in fields or field.partition(".")[0] not in parts:
            continue
        measured = fields[field]
        measured = tuple(measured) if isinstance(measured, list) else measured
        same = bool(measured) if published == "on" else measured == published
        if not same and (field != "augment.crop_scale" or random_size):
            differing.append(f"{field} {measured}, not {published}")
    if "with EMA" in (row.variant or "") and "finetune" in parts:
        differing.append("last weights, not their moving average")
    return differing
