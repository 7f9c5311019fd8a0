"""A picture of what an encoder makes of images: attention, features as false colour, nearest neighbours.

Rows: the image, with the asking patch framed; where the class token looks, and where that patch looks, in the last
block, averaged over heads and scaled to the largest share; the first three principal components of the last layer's
patch features over all images shown; the nearest training images of a data set by the cosine of centred features.

Legend: N images, h x w grid, k neighbours.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from torch import Tensor

from mim_bench.data.crop import EvalCrop
from mim_bench.errors import UserError
from mim_bench.evaluate.attention import attention_maps, check_patch
from mim_bench.evaluate.encoders.describe import shape_of
from mim_bench.evaluate.features import has_class_token, layers
from mim_bench.evaluate.own_images import read_images
from mim_bench.evaluate.picture import compose, enlarge, write
from mim_bench.experiment.external import Prepared, label, open_any, prepare
from mim_bench.target import Geometry, to_rgb
from mim_bench.targets.feature_picture import feature_picture

_TILE = 112
"""Pixels; an image is enlarged by a whole factor to at least this."""
Rows = list[tuple[str, str, Tensor]]
"""Name, remark and tiles (N, 3, H, W) of each."""


def look(
    spec: str,
    files: Sequence[Path],
    out: Path,
    *,
    patch: tuple[int, int] | None = None,
    data: str | None = None,
    num_neighbours: int = 4,
    num_heads: int | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes the picture as PNG.

    Args:
        spec: run folder, file, or `timm:NAME`.
        files: images, at most 8.
        patch: row and column, from 0, of a patch whose attention is drawn too.
        data: data source whose training images neighbours are sought among; by default none are.

    Raises:
        UserError: anything that the user can put right.
    """
    if out.suffix != ".png":
        raise UserError(f"out={out}: the name of a .png file is needed")
    prepared = None
    if data is not None:
        settings = [f"data.source={data}", "evaluate.protocols=[]"]
        prepared = prepare(spec, "tiny", settings, num_heads=num_heads, notify=notify)
    loaded = prepared.loaded if prepared else open_any(spec, num_heads=num_heads, notify=notify)
    if prepared is None:  # else it has been said
        notify(f"{loaded.family}: {loaded.counts}")
    encoder, shape = loaded.encoder, shape_of(loaded.encoder)
    channels = prepared.config.data.in_chans if prepared else shape["in_chans"]
    device = next(encoder.parameters()).device
    crop = EvalCrop(size=shape["image_size"])
    levels = read_images(files, crop, channels, device)
    images = levels.float() / 255
    geometry = Geometry(crop.size, shape["patch_size"], shape["in_chans"], loaded.mean, loaded.std)
    inputs = geometry.normalize(images.expand(-1, shape["in_chans"], -1, -1))

    if patch is not None:
        check_patch(patch, geometry.grid)
    rgb = to_rgb(images.cpu())
    rows: Rows = [("image", "", rgb if patch is None else _framed(rgb, patch, geometry))]
    if has_class_token(encoder):
        rows.append(("class token", "attends to", _heat(attention_maps(encoder, inputs), geometry)))
    if patch is not None:
        maps = attention_maps(encoder, inputs, patch)
        rows.append((f"patch {patch[0]}, {patch[1]}", "attends to", _heat(maps, geometry)))
    with torch.no_grad():
        tokens = layers(encoder, inputs, ("last",))[0][:, -geometry.num_patches :].float().cpu()
    rows.append(("features", "3 principal components", feature_picture(tokens, tokens, geometry)))
    if prepared:
        rows += _neighbours(prepared, levels, num_neighbours)
    factor = max(1, -(-_TILE // min(crop.size)))
    wide = tuple((name, remark, enlarge(t, factor * t.shape[-1])) for name, remark, t in rows)
    write(compose(wide, title=label(loaded.source), footnote=""), out)


def _heat(maps: Tensor, geometry: Geometry) -> Tensor:
    """Attention (N, A, h, w) -> colours (N, 3, H, W)."""
    mean = maps.mean(1).cpu()
    scaled = mean / mean.amax((1, 2), keepdim=True)
    colours = torch.from_numpy(colormaps["magma"](scaled.numpy())[..., :3]).float()
    return enlarge(colours.permute(0, 3, 1, 2), geometry.image_size[1])


def _framed(images: Tensor, patch: tuple[int, int], geometry: Geometry) -> Tensor:
    """(N, 3, H, W) with a red frame, a pixel wide, inside of a patch."""
    side = geometry.patch_size
    top, left = patch[0] * side, patch[1] * side
    framed, red = images.clone(), torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1)
    for line in (framed[:, :, top, left : left + side], framed[:, :, top + side - 1, left : left + side],
                 framed[:, :, top : top + side, left], framed[:, :, top : top + side, left + side - 1]):  # fmt: skip
        line.copy_(red.expand_as(line))
    return framed


def _neighbours(prepared: Prepared, levels: Tensor, num: int) -> Rows:
    """The nearest training images of each of the images (N, C, H, W) uint8."""
    features, train = prepared.features, prepared.data.train
    name = "last/patch_mean"
    train_features = features.of(train, name)
    query = features.encode(levels)[:, features.names.index(name)]
    mean = train_features.mean(0)
    similarity = F.normalize(query - mean, dim=1) @ F.normalize(train_features - mean, dim=1).T
    best, index = similarity.topk(min(num, len(train_features)), dim=1)
    rows: Rows = []
    for column in range(index.shape[1]):
        chosen = index[:, column].cpu()
        pixels = next(iter(train.batches([chosen], features.crop, device=features.device)))[0]
        lowest, highest = f"{best[:, column].min():.2f}", f"{best[:, column].max():.2f}"
        remark = f"cosine {lowest}" if lowest == highest else f"cosine {lowest} to {highest}"
        rows.append((f"neighbour {column + 1}", remark, to_rgb(pixels.float().cpu() / 255)))
    return rows
