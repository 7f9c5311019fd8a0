"""The model card of an exported encoder: what it is, what it was measured at, and against what.

Numbers are those of the run's own records, with their standard errors and the commit that made them; a run without
records says so. One run is one seed, which the card says too.
"""

from pathlib import Path

from mim_bench.config import recipe
from mim_bench.config.run import RunConfig
from mim_bench.errors import UserError
from mim_bench.records.measure import measures
from mim_bench.records.record import Record, read
from mim_bench.records.run_folder import read_manifest

_Z = 1.96
"""Normal quantile of a 95 % interval."""
_BASELINES = {
    "pixels": "raw pixels",
    "pca": "PCA at the encoder's width",
    "target": "the target as a feature",
}


def model_card(folder: Path, config: RunConfig, export_format: str, usage: str) -> str:
    """The card as Markdown, with the header that model hubs read."""
    records = [read(path) for path in sorted((folder / "records").glob("*.json"))]
    lines = [
        "---",
        f"library_name: {'transformers' if export_format == 'hf' else 'timm'}",
        "pipeline_tag: image-feature-extraction",
        "tags: [masked-image-modelling, self-supervised, vision-transformer, mim_bench]",
        "---",
        f"# {config.run_id}",
        "",
        f"A ViT encoder, pre-trained by mim_bench with the target **{config.target.name}**: {_about(config)}",
        "",
        "```python",
        usage.replace("DIR", "PATH_OF_THIS_FOLDER"),
        "```",
        "",
        *_facts(folder, config),
        "",
        "## Accuracy",
        "",
        *_accuracy(records),
        "",
        "## Licence and citation",
        "",
        "The code is MIT. The weights were made from the images named above, whose terms apply to them.",
        f"Cite the target's paper, {_paper(config)}, and mim_bench with the commit above.",
    ]
    return "\n".join(lines) + "\n"


def _about(config: RunConfig) -> str:
    try:
        return recipe.load_recipe(config.target.name).description
    except UserError:  # somebody else's recipe, which is not at hand
        return config.target.class_path


def _paper(config: RunConfig) -> str:
    try:
        return recipe.load_recipe(config.target.name).paper
    except UserError:
        return "which its recipe names"


def _facts(folder: Path, config: RunConfig) -> list[str]:
    model, data, pretrain = config.model, config.data, config.pretrain
    manifest = read_manifest(folder)
    code, facts = manifest["code"], manifest["data"]
    size = "x".join(map(str, data.image_size or ()))
    rows = {
        "encoder": f"ViT {model.depth} x {model.embed_dim}, {model.num_heads} heads, patch {model.patch_size}, "
        f"{data.in_chans} x {size} pixels",
        "input": f"RGB or grey in [0, 1], normalised by mean {channel_text(data.mean)} and std "
        f"{channel_text(data.std)}",
        "data": f"{facts['source']}, {facts['num_train_images']:,} images, fingerprint {facts['fingerprint'][:16]}",
        "recipe": f"{pretrain.epochs} epochs, batch {pretrain.batch_size}, lr {pretrain.lr:g}, {config.mask.sampling} "
        f"mask of {config.mask.ratio:g}, mask tokens in {model.mask_tokens}, seed {config.seed}",
        "target": ", ".join(f"{key} {value}" for key, value in config.target.params.items())
        or "no parameters",
        "run": f"{config.hash}",
        "commit": code["commit"] + " with local changes" * code["dirty"],
    }
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]


def channel_text(values: tuple[float, ...] | None) -> str:
    """Values of the channels: `0.4912, 0.4825, 0.4471`."""
    return ", ".join(f"{value:.4g}" for value in values or ())


def _accuracy(records: list[Record]) -> list[str]:
    """Rows of measures with their intervals, controls and baselines."""
    rows = []
    for record in records:
        for name, measure in measures(record).items():
            if not measure.is_accuracy or "@" in name:
                continue
            half = 100 * _Z * measure.stderr
            control = "" if measure.control is None else f"{100 * measure.control:.1f}"
            if record.protocol == "baselines":
                image, _, probe = name.removeprefix("baselines ").partition(":")
                name = f"baseline: {_BASELINES.get(image, image)}, {probe}"
            rows.append(f"| {name} | {100 * measure.value:.1f} ± {half:.1f} | {control} |")
    if not rows:
        return ["Not evaluated."]
    shared = records[0]
    evaluated_on = f"{shared.data.num_evaluated_images:,} images of the {shared.data.split} split"
    limited = " (the data were limited: plumbing, no finding)" * shared.data.limited
    return [
        f"Top-1 in per cent on {evaluated_on}{limited}, read at {shared.config['evaluate']['layer']}/"
        f"{shared.config['evaluate']['pooling']}; ± is the 95 % interval over images. One seed: differences to other "
        "models are not tested here.",
        "",
        "| protocol | accuracy | same encoder, random weights |",
        "|---|---|---|",
        *rows,
    ]
