"""Linear segmentation: one linear classifier for all patches of the frozen encoder, mean IoU over classes.

DINOv2 (Oquab et al. 2023, arXiv 2304.07193, section 7.4, "lin."): logits of the patches, brought to pixels by bilinear
interpolation. Deliberate differences: the classifier is multinomial logistic regression at its minimum, on the shares
of the classes in each patch, not SGD on pixels; images are cropped as in the other protocols.

The same classifier on the raw pixels of each patch is evaluated too, as the baseline. The error is that of a bootstrap
over test images.

Legend: N images, L patches on a grid h x w, D width, K classes, H W image.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mim_bench import rng
from mim_bench.data.crop import eval_box
from mim_bench.data.decode import fit_channels
from mim_bench.data.masks import IGNORED, MaskedSet, open_masked
from mim_bench.data.resample import cut
from mim_bench.errors import UserError
from mim_bench.evaluate.context import EvalContext, ProtocolResult
from mim_bench.evaluate.logistic import Logistic, logistic_regression, standardised
from mim_bench.records.record import Metric

_RESAMPLES = 200
PIXELS = "pixels/patches"


def run(context: EvalContext) -> ProtocolResult:
    """Mean IoU of the encoder's patches, and of raw pixels, which stand in the row of that baseline."""
    settings = context.config.segment
    train, test = open_masked(settings.source)
    train_pairs, query = (
        _load(context, images, max_images)
        for images, max_images in (
            (train, settings.max_train_images),
            (test, settings.max_test_images),
        )
    )
    num_classes = _num_classes(train_pairs[1])
    metrics, states = [], []
    functions = {
        f"{layer}/patches": partial(context.features.patches, layer=layer)
        for layer in context.features.patch_layers
    }
    for name, function in (functions | {PIXELS: _pixels(context)}).items():
        confusion, solution = _segment(context, function, train_pairs, query, num_classes)
        value, error = mean_iou(confusion)
        metrics.append(
            Metric(name="miou", readout=name, value=value, stderr=error, n=len(confusion))
        )
        states.append(f"{name} {'converged' if solution.is_converged else 'NOT converged'}")
    sizes = f"{len(train_pairs[0])} training and {len(query[0])} test images, {num_classes} classes"
    note = f"segment: {settings.source}, {sizes}; {', '.join(states)}"
    return ProtocolResult({}, (note,), metrics=tuple(metrics))


def _load(context: EvalContext, images: MaskedSet, max_images: int) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) uint8 and masks (N, H, W) int64, cropped as at evaluation."""
    crop, channels = context.features.crop, context.config.data.in_chans
    assert channels is not None
    pixels, masks = [], []
    for i in range(min(max_images, len(images))):
        image = fit_channels(images.image(i), channels, f"image {i}")
        box = eval_box(torch.tensor([image.shape[:2]]), crop.size, crop.crop_fraction)
        pixels.append(cut([image], box, torch.zeros(1, dtype=torch.bool), crop.size)[0])
        top, left, height, width = box[0].tolist()
        inside = Image.fromarray(images.mask(i)[top : top + height, left : left + width])
        masks.append(
            np.asarray(inside.resize((crop.size[1], crop.size[0]), Image.Resampling.NEAREST))
        )
    return (
        torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2),
        torch.from_numpy(np.stack(masks)).long(),
    )


def _num_classes(masks: Tensor) -> int:
    labels = masks[masks != IGNORED]
    if len(labels) == 0 or labels.max() == labels.min():
        raise UserError("segment.source: the training masks hold fewer than two classes")
    return int(labels.max()) + 1


def _pixels(context: EvalContext) -> Callable[[Tensor], Tensor]:
    """8-bit images -> raw pixels of each patch, (B, L, p*p*C)."""
    return lambda images: context.features.geometry.patchify(images.float() / 255)


def _segment(
    context: EvalContext,
    function: Callable[[Tensor], Tensor],
    train_pairs: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
    num_classes: int,
) -> tuple[Tensor, Logistic]:
    """Confusion of each test image (N, K, K), truth down and prediction across, and the classifier."""
    grid, size = context.features.geometry.grid, context.config.evaluate.batch_size

    def readout_features(images: Tensor) -> Tensor:
        parts = [function(part.to(context.device)).float().cpu() for part in images.split(size)]
        return torch.cat(parts).flatten(0, 1)

    label_shares = patch_shares(train_pairs[1], grid, num_classes).flatten(0, 1)
    train, test = standardised(readout_features(train_pairs[0]), readout_features(query[0]))
    is_known = label_shares.sum(1) > 0
    solution = logistic_regression(
        train[is_known], label_shares[is_known], num_classes, context.config.segment.c
    )
    logits = solution.logits(test).view(len(query[0]), *grid, num_classes).permute(0, 3, 1, 2)
    confusion = []
    for part, truth in zip(logits.split(size), query[1].split(size), strict=True):
        at_pixels = F.interpolate(part.float(), list(truth.shape[1:]), mode="bilinear")
        confusion.append(confusions(truth, at_pixels.argmax(1), num_classes))
    return torch.cat(confusion), solution


def patch_shares(masks: Tensor, grid: tuple[int, int], num_classes: int) -> Tensor:
    """Masks (N, H, W) int64 -> share of each class in each patch (N, L, K) float64; 0 where all is ignored."""
    num, height, width = masks.shape
    cells = masks.view(num, grid[0], height // grid[0], grid[1], width // grid[1])
    cells = cells.permute(0, 1, 3, 2, 4).reshape(num, grid[0] * grid[1], -1)
    counts = torch.stack([(cells == k).sum(2) for k in range(num_classes)], dim=2).double()
    return counts / counts.sum(2, keepdim=True).clamp_min(1)


def confusions(truth: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Two (N, H, W) int64 -> (N, K, K) counts of pixels, ignored ones left out."""
    if bool(((truth >= num_classes) & (truth != IGNORED)).any()):
        raise UserError(
            f"segment.source: a test mask has a class above {num_classes - 1}, the last of training"
        )
    pairs = (truth * num_classes + predicted).flatten(1)
    counts = []
    for row, keep in zip(pairs, (truth != IGNORED).flatten(1), strict=True):
        counts.append(torch.bincount(row[keep], minlength=num_classes**2))
    return torch.stack(counts).view(-1, num_classes, num_classes)


def mean_iou(confusion: Tensor) -> tuple[float, float]:
    """Confusions (N, K, K) -> mean over classes, of all images together, and its bootstrap error over images."""
    num = len(confusion)
    uniform = rng.uniform(torch.arange(num), _RESAMPLES, seed=0, epoch=0, stream="bootstrap")
    draws = (uniform * num).long().T
    means = [_mean_iou(confusion[draw].sum(0)) for draw in draws]
    return _mean_iou(confusion.sum(0)), float(np.std(means))


def _mean_iou(total: Tensor) -> float:
    """(K, K) counts -> mean over the classes that occur."""
    intersection = total.diagonal().double()
    union = total.sum(0) + total.sum(1) - intersection
    return float((intersection[union > 0] / union[union > 0]).mean())
