"""Loading a pre-trained encoder into a plain model of timm's, never silently.

Accepts a run folder, a folder of a library's, a safetensors file, a checkpoint of MAE's, timm's or a toolbox's.
Whose file it is, is looked up (`encoders.families`); what the encoder is made of is read from its tensors
(`encoders.skeleton`). Names of timm's are another door (`encoders.named`).
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from timm.models.beit import Beit
from torch import Tensor, nn

from mim_bench.errors import UserError
from mim_bench.evaluate.encoders.convert import to_timm
from mim_bench.evaluate.encoders.families import Family
from mim_bench.evaluate.encoders.saved_config import read_saved_config
from mim_bench.evaluate.encoders.skeleton import build_skeleton
from mim_bench.evaluate.weights_file import read_weights
from mim_bench.files import file_digests
from mim_bench.model.vit import Encoder
from mim_bench.records.run_folder import check, read_config
from mim_bench.train import checkpoint

_logger = logging.getLogger(__name__)
_FILES = ("encoder.safetensors", "model.safetensors", "pytorch_model.bin")
"""File names of weights in a folder: ours, Hugging Face's and timm's, and their older ones."""


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder and how it came to be."""

    encoder: Encoder | Beit
    """No head, tokens out."""
    source: str
    """The file, or the name of timm's."""
    sha256: str
    """SHA-256 of the file, or of all tensors of a model that timm made."""
    family: str
    paper: str
    mean: tuple[float, ...]
    """Per channel, of images in [0, 1]: how its input is normalised."""
    std: tuple[float, ...]
    statistics_from: str
    """Source of the mean and standard deviation."""
    num_matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    left_out: tuple[str, ...]
    """Tensors of head, decoder and wrappers."""
    notes: tuple[str, ...]
    """Conversions of the tensors, in words."""
    build: Callable[[], Encoder | Beit]
    """Makes the same encoder at timm's initial weights."""
    md5: str = ""
    """MD5 of the file; empty for a model that timm made."""

    @property
    def counts(self) -> str:
        """The counts in words."""
        return (
            f"{self.num_matched} tensors matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected; "
            f"{len(self.left_out)} of decoder and head left out"
        )


def load_encoder(
    path_or_run: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> Encoder:
    """A timm ViT (no head, tokens out) with pre-trained weights; every encoder tensor must match.

    With a relative position bias (BEiT, data2vec) it is timm's `Beit`, which is called the same way.

    Args:
        path_or_run: run folder, or a file of weights.
        image_size: pixels, side or (height, width); where a file is of another size its position table is
            interpolated, and a warning says so. Needed for a file whose grid is not square.
        num_heads: only needed for a file of a width other than ViT-T, S, B, L, H, that states it nowhere.

    Raises:
        UserError: unreadable, or not all of the encoder's tensors match; counts are given.
    """
    loaded = open_encoder(Path(path_or_run), image_size=image_size, num_heads=num_heads)
    return loaded.encoder  # pyright: ignore[reportReturnType]


def open_encoder(
    path: Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
    allow_partial: bool = False,
) -> LoadedEncoder:
    """An encoder with what is known of it; see `load_encoder`.

    Args:
        allow_partial: load what matches, leave the rest at initial weights, and say so.
    """
    if is_run := (path / "manifest.json").is_file():
        check(path, _FILES[0])
        image_size = image_size or read_config(path).data.image_size
        path = path / _FILES[0]
    elif path.is_dir():
        path = _file_in(path)
    saved = read_saved_config(path)
    weights = read_weights(path, saved.model_type)
    notes = list(weights.notes)
    try:
        tensors, others = to_timm(weights)
        build = partial(
            build_skeleton,
            tensors,
            image_size=(image_size, image_size) if isinstance(image_size, int) else image_size,
            num_heads=num_heads or saved.num_heads,
            epsilon=saved.epsilon or weights.family.epsilon,
            has_fc_norm="fc_norm.weight" in others,
        )
        encoder = build(notes)
        matched, missing, unexpected = match(encoder, tensors, allow_partial=allow_partial)
        _check_finite(tensors)
    except UserError as error:
        first = list(weights.tensors)[:5]
        raise UserError(f"{path}: {error}; its first names: {', '.join(first)}") from None
    if missing or unexpected:
        notes.append(f"partial: {', '.join(missing[:3])} at initial weights; not comparable")
    for note in notes:
        _logger.warning("%s: %s", path, note)
    loaded = LoadedEncoder(
        encoder=encoder,
        source=str(path),
        **hashes(path),
        family="run of mim_bench" if is_run else weights.family.name,
        paper=weights.family.paper,
        mean=_per_channel(saved.mean or weights.family.mean, encoder),
        std=_per_channel(saved.std or weights.family.std, encoder),
        statistics_from=saved.statistics_from or _habit(weights.family),
        num_matched=len(matched),
        missing=missing,
        unexpected=unexpected,
        left_out=(*others, *weights.others),
        notes=tuple(notes),
        build=lambda: build([]),
    )
    _logger.info("%s: %s", path, loaded.counts)
    return loaded


def hashes(path: Path) -> dict[str, str]:
    """Hashes of a file of weights: `sha256`, and `md5`, of which publishers give the first digits."""
    names = ("sha256", "md5")
    return dict(zip(names, file_digests(path, *names), strict=True))


def match(
    encoder: nn.Module, tensors: Mapping[str, Tensor], *, allow_partial: bool
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Loads tensors by name and shape; names that matched, are missing, and are unexpected.

    Raises UserError where not all match, unless `allow_partial`.
    """
    if not allow_partial:
        checkpoint.load_exactly(encoder, tensors, "encoder")
        return tuple(tensors), (), ()
    own = encoder.state_dict()
    fitting = {k: t for k, t in tensors.items() if k in own and own[k].shape == t.shape}
    if not fitting:
        raise UserError("no tensor matches")
    encoder.load_state_dict(fitting, strict=False)
    return (
        tuple(fitting),
        tuple(name for name in own if name not in fitting),
        tuple(name for name in tensors if name not in fitting),
    )


def _file_in(folder: Path) -> Path:
    """The file of weights in a folder of a run or a library."""
    there = [folder / name for name in _FILES if (folder / name).is_file()]
    if not there:
        raise UserError(f"{folder} holds no weights; looked for {', '.join(_FILES)}")
    return there[0]


def _habit(family: Family) -> str:
    return f"what {family.name} is evaluated with" + f" ({family.remark})" * bool(family.remark)


def _per_channel(values: tuple[float, ...], encoder: nn.Module) -> tuple[float, ...]:
    """Statistics for the encoder's channels; those of another number of channels are averaged."""
    num = encoder.patch_embed.proj.weight.shape[1]  # pyright: ignore
    return values if len(values) == num else (sum(values) / len(values),) * num


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError naming one of the tensors that are not finite."""
    if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise UserError(f"{len(bad)} tensors are not finite, such as {bad[0]}")
