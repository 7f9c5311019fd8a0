"""Data sources by name: `open_source("embedded")`, `"cifar10"`, `"folder:PATH"`, `"parquet:PATH"`.

A source is a training and a test set behind one interface (`image_set.ImageSet`); what follows does
not know where the images lie.
"""

from pathlib import Path

import numpy as np

from mim_bench.data.folder import SPLIT_OFF, open_folder
from mim_bench.data.image_set import ImageSet, Source, drop_bad, settle_channels
from mim_bench.data.parquet import open_parquet
from mim_bench.data.torchvision_sets import DOWNLOADABLE, open_torchvision
from mim_bench.errors import UserError, suggest

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and std per channel that ImageNet work uses throughout."""
_NEED_PATH = {
    "imagenet": "imagenet:PATH, ImageNet-1k with train/ and val/ of 1,000 class folders each",
    "folder": "folder:PATH, class folders (train/ and test/ or val/ if there), or flat without labels",
    "parquet": "parquet:PATH, train*.parquet and test*.parquet in the Hugging Face layout",
}


def list_sources() -> dict[str, str]:
    """Name -> one line of description."""
    first = {"embedded": "10,000 + 2,000 grey 28 x 28 images of Fashion-MNIST, in the package"}
    return first | DOWNLOADABLE | _NEED_PATH


def resolve_source(name: str) -> str:
    """The name with its path made absolute. UserError for an unknown name or a path too few or many."""
    kind, colon, place = name.partition(":")
    if kind not in list_sources():
        raise UserError(f"no data source {name!r}; {suggest(kind, list_sources())}")
    if kind in _NEED_PATH and not place:
        raise UserError(f"data source {kind!r} needs a path: {kind}:PATH")
    if colon and (kind == "embedded" or not place):
        raise UserError(
            f"data source {kind!r} takes no path" if place else f"{name!r}: no path given"
        )
    return f"{kind}:{Path(place).expanduser().absolute()}" if place else kind


def open_source(name: str, *, skip_bad_images: bool = False) -> Source:
    """Opens a data source.

    `skip_bad_images` decodes every image once, leaves the unreadable ones out and counts them in each
    set's `num_skipped`; otherwise the first one that is met raises. Raises UserError for an unknown
    name, data that is not there, empty data, labelled data of a single class, and unknown test labels.
    """
    name = resolve_source(name)
    kind, _, place = name.partition(":")
    rule = "the data set's own"
    if kind == "embedded":
        folder = Path(__file__).parent / "embedded"
        train, test, class_names, _ = open_parquet(folder)
    elif kind == "parquet":
        train, test, class_names, rule = open_parquet(Path(place))
    elif kind in ("folder", "imagenet"):
        train, test, class_names, rule = open_folder(Path(place))
    else:
        train, test, class_names = open_torchvision(kind, Path(place) if place else None)
    for split, images in (("training", train), ("test", test)):
        if len(images) == 0:
            raise UserError(f"{name}: no {split} images")
    if skip_bad_images:
        train, test = drop_bad(train), drop_bad(test)
        for split, images in (("training", train), ("test", test)):
            if len(images) == 0:
                raise UserError(
                    f"{name}: not one of {images.num_skipped} {split} images is readable"
                )
    _check_labels(name, train, None if rule == SPLIT_OFF else test)
    settle_channels([train, test])
    constants = IMAGENET if kind == "imagenet" and train.num_channels == 3 else None
    return Source(name, train, test, class_names, rule, constants)


def _check_labels(name: str, train: ImageSet, test: ImageSet | None) -> None:
    """`test`: only where the data brought it, and may use other labels."""
    if train.labels is None:
        return
    classes = np.unique(train.labels)
    if len(classes) < 2:
        raise UserError(
            f"{name}: all training images are of one class, at least two are needed; "
            "for images without labels give a flat folder"
        )
    if test is None or test.labels is None:
        return
    unknown = sorted(set(test.labels.tolist()) - set(classes.tolist()))
    if unknown:
        raise UserError(f"{name}: test label {unknown[0]} is not among those of training")
