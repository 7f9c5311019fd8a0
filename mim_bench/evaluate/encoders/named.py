"""An encoder by its name in timm's registry, `timm:NAME`, or with weights of a local file, `timm:NAME@FILE`.

Without a file timm takes the weights from its cache or downloads them, which is said before. The model is timm's
own, whatever its class, as long as it hands out its blocks' tokens.
"""

import difflib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from torch import nn

from mim_bench.errors import UserError
from mim_bench.evaluate.encoders.convert import to_timm
from mim_bench.evaluate.encoders.positions import fit_absolute, fit_relative
from mim_bench.evaluate.load_encoder import LoadedEncoder, hashes, match
from mim_bench.evaluate.weights_file import read_weights

PREFIX = "timm:"
_NEEDED = ("forward_intermediates", "blocks", "patch_embed", "num_prefix_tokens")


def open_named(
    spec: str,
    *,
    image_size: tuple[int, int] | None = None,
    allow_partial: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> LoadedEncoder:
    """The encoder that `timm:NAME` or `timm:NAME@FILE` means.

    Args:
        image_size: height and width in pixels; by default that of timm's model.
        allow_partial: of a file, load what matches.
        notify: called before anything is downloaded.

    Raises:
        UserError: unknown name, no ViT, weights that cannot be had or do not match.
    """
    name, _, file = spec.removeprefix(PREFIX).partition("@")
    options: dict[str, Any] = {"num_classes": 0} | ({"img_size": image_size} if image_size else {})

    def create(*, pretrained: bool) -> nn.Module:
        try:
            return timm.create_model(name, pretrained=pretrained, **options)
        except Exception as error:  # timm, the hub's client and the network raise almost anything
            raise UserError(f"{spec}: {_reason(name, error)}") from None

    if not file and timm.is_model(name):
        notify(f"timm takes the weights of {name} from its cache, or downloads them now")
    encoder: Any = create(pretrained=not file)
    if not all(hasattr(encoder, attribute) for attribute in _NEEDED):
        raise UserError(
            f"{spec} is a {type(encoder).__name__}; needed is a ViT, whose blocks hand out tokens"
        )
    pretrained_cfg, statistics = encoder.pretrained_cfg, f"timm's config of {name}"
    facts: dict[str, Any] = {"family": f"timm's {type(encoder).__name__}", "paper": "", "notes": ()}
    if file:
        facts |= _load(encoder, Path(file), allow_partial=allow_partial)
    else:
        hashed = hashlib.sha256()
        for key, tensor in encoder.state_dict().items():
            hashed.update(key.encode() + tensor.numpy().tobytes())
        facts |= {"sha256": hashed.hexdigest(), "num_matched": len(encoder.state_dict())}
        facts |= {"missing": (), "unexpected": (), "left_out": ()}
    return LoadedEncoder(
        encoder=encoder,
        source=spec,
        mean=tuple(pretrained_cfg["mean"]),
        std=tuple(pretrained_cfg["std"]),
        statistics_from=statistics,
        build=lambda: create(pretrained=False),  # pyright: ignore[reportArgumentType]
        **facts,
    )


def _load(encoder: Any, path: Path, *, allow_partial: bool) -> dict[str, Any]:
    """Puts a file's weights into timm's model; what is known of it afterwards."""
    weights = read_weights(path)
    notes = list(weights.notes)
    grid = tuple(encoder.patch_embed.grid_size)
    try:
        tensors, others = to_timm(weights)
        if "pos_embed" in tensors:
            fit_absolute(tensors, encoder.num_prefix_tokens, grid, notes)
        if any(key.endswith("relative_position_bias_table") for key in tensors):
            fit_relative(tensors, grid, notes)
        matched, missing, unexpected = match(encoder, tensors, allow_partial=allow_partial)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return {
        "family": weights.family.name,
        "paper": weights.family.paper,
        **hashes(path),
        "num_matched": len(matched),
        "missing": missing,
        "unexpected": unexpected,
        "left_out": (*others, *weights.others),
        "notes": tuple(notes),
    }


def _reason(name: str, error: Exception) -> str:
    """Reason why timm gave no model, in a line."""
    base = name.partition(".")[0]
    if not timm.is_model(base):
        nearest = difflib.get_close_matches(base, timm.list_models(), n=3)
        return f"timm has no such model; nearest: {', '.join(nearest) or 'none'}"
    if "img_size" in str(error):
        return f"image_size cannot be set for {name}: {str(error).splitlines()[0]}"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"no weights ({first}); with a local file: timm:{name}@FILE"
