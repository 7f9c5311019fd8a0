"""Options that people type out of habit from MAE's, timm's and other scripts, as settings of this project.

Accepted where it can mean one thing only; else refused with the exact spelling to use.
"""

from collections.abc import Sequence
from pathlib import Path

from mim_bench.config import recipe
from mim_bench.config.resolve import fields
from mim_bench.config.run import RunConfig
from mim_bench.errors import UserError, suggest

_SETTINGS = {
    "epochs": "pretrain.epochs",
    "batch_size": "pretrain.batch_size",
    "blr": "pretrain.blr",
    "min_lr": "pretrain.min_lr",
    "warmup_epochs": "pretrain.warmup_epochs",
    "weight_decay": "pretrain.weight_decay",
    "clip_grad": "pretrain.clip_norm",
    "accum_iter": "pretrain.accumulation_steps",
    "mask_ratio": "mask.ratio",
    "input_size": "data.image_size",
    "img_size": "data.image_size",
    "workers": "runtime.num_workers",
}
"""Spelling -> field that it means."""
_INSTEAD = {
    "lr": "pretrain.blr, the rate for 256 images: lr = blr * batch_size / 256",
    "norm_pix_loss": "--target norm_pixel",
    "gpu": "--device cuda, with CUDA_VISIBLE_DEVICES=N before the command",
    "gpus": "torchrun --nproc-per-node N -m mim_bench run ..., or --gpus-per-node of sweep --cluster slurm",
    "model": "--preset, or model.embed_dim, model.depth and model.num_heads",
    "data_path": "--data folder:PATH",
    "data_dir": "--data folder:PATH",
    "output_dir": "--out PATH",
    "seeds": "--seed N of run; a sweep's seeds are in the benchmark file",
}
"""Spelling of what is no field -> what to use."""
COMMANDS = {
    "evaluate": "`run` evaluates what it pre-trains, `eval --encoder FILE` anybody's encoder",
    "train": "`run` pre-trains and evaluates",
    "pretrain": "`run` pre-trains; --protocols none leaves the evaluation out",
    "submit": "`sweep BENCHMARK --cluster slurm`",
    "plot": "`figure BENCHMARK`",
}
"""Command that there is not -> what does it."""


def read_words(words: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Words after a command -> a target's name if there is one, and settings `section.field=value`.

    `hog`, `target=hog`, `mask_ratio=0.6`, `--mask_ratio 0.6` and `--mask-ratio=0.6` are all understood.
    """
    target: str | None = None
    settings: list[str] = []
    remaining = list(words or ())
    while remaining:
        word = remaining.pop(0)
        is_flag = word.startswith("-")
        name, equals, value = word.lstrip("-").partition("=") if is_flag else word.partition("=")
        if not equals and not is_flag:
            if target is not None or not _is_target(word):
                raise UserError(
                    f"'{word}' is neither a setting, section.field=value, nor a target; "
                    f"{suggest(word, recipe.names('targets'))}"
                )
            target = word
        elif name == "target":
            target = value
        else:
            name = field(name, word)
            if not equals and not (remaining and not remaining[0].startswith("--")):
                raise UserError(f"{word}: a value is missing; spelled {name}=VALUE")
            settings.append(f"{name}={value if equals else remaining.pop(0)}")
    return target, settings


def field(name: str, word: str) -> str:
    """The field that a name means; a full name comes back as it is, to be checked with its value."""
    snake_case = name.replace("-", "_")
    if snake_case in _INSTEAD:
        raise UserError(f"{word}: use {_INSTEAD[snake_case]}")
    if snake_case in _SETTINGS:
        return _SETTINGS[snake_case]
    leaves = fields(RunConfig)
    if "." in name or name in leaves:
        return name
    matching = [
        leaf for leaf in leaves if snake_case in (leaf.rpartition(".")[2], leaf.replace(".", "_"))
    ]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UserError(f"{word}: say which: {', '.join(matching)}")
    if word.startswith("-"):
        raise UserError(f"no option {word}; `--help` lists options, `config show` settings")
    return name


def _is_target(word: str) -> bool:
    is_near = suggest(word.lower(), recipe.names("targets")).startswith("nearest")
    return is_near or word.endswith(".toml") or Path(f"{word}.toml").is_file()
