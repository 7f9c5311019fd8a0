"""Data sources by name: `open_source("embedded")`, `"cifar10"`, `"folder:PATH"`, `"parquet:PATH"`.

A source is a training and a test set behind one interface (`image_set.ImageSet`); what follows does
not know where the images lie.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mim_bench.config.source import check_source, source_spec
from mim_bench.data.folder import OWN_SPLIT, SPLIT_OFF, Opened
from mim_bench.data.image_set import ImageSet, Source, drop_bad, settle_channels
from mim_bench.data.parquet import open_parquet
from mim_bench.errors import UserError
from mim_bench.lazy import import_object

Loader = Callable[[str, Path | None], Opened]
"""`(name, path)` of a source -> its training and test set, class names and split rule."""


def open_embedded(name: str, path: Path | None) -> Opened:
    """The sample of Fashion-MNIST that the package carries; `path` is None."""
    train, test, class_names, _ = open_parquet(name, Path(__file__).parent / "embedded")
    return train, test, class_names, OWN_SPLIT


def resolve_source(name: str) -> str:
    """The name with its path made absolute. UserError for an unknown name or a path too few or many."""
    check_source(name)
    scheme, _, argument = name.partition(":")
    return f"{scheme}:{Path(argument).expanduser().absolute()}" if argument else scheme


def open_source(name: str, *, skip_bad_images: bool = False) -> Source:
    """Opens a data source.

    `skip_bad_images` decodes every image once, leaves the unreadable ones out and counts them in each
    set's `num_skipped`; otherwise the first one that is met raises. Raises UserError for an unknown
    name, data that is not there, empty data, labelled data of a single class, and unknown test labels.
    """
    name = resolve_source(name)
    spec, argument = source_spec(name), name.partition(":")[2]
    load: Loader = import_object(spec.loader, f"data source '{spec.name}': {spec.loader}")
    train, test, class_names, rule = load(spec.name, Path(argument) if argument else None)
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
    class_names = _index_labels(name, train, test, class_names, is_own=rule != SPLIT_OFF)
    settle_channels([train, test])
    constants = spec.normalisation if train.num_channels == 3 else None
    return Source(name, train, test, class_names, rule, constants)


def _index_labels(
    name: str, train: ImageSet, test: ImageSet, names: tuple[str, ...] | None, *, is_own: bool
) -> tuple[str, ...] | None:
    """Makes the labels of both sets class indices from 0, and returns the class names.

    Words, and numbers with gaps such as WordNet's, are numbered in their order; their names keep what they
    were. `is_own`: the data brought the test images, which may have labels that training has not.
    """
    if train.labels is None:
        return names
    if len(train.labels) != len(train):
        raise UserError(f"{name}: {len(train):,} training images have {len(train.labels):,} labels")
    classes = np.unique(train.labels)
    if len(classes) < 2:
        raise UserError(
            f"{name}: all training images are of one class, at least two are needed; "
            "for images without labels give a flat folder"
        )
    if is_own and test.labels is not None:
        if len(test.labels) != len(test):
            raise UserError(f"{name}: {len(test):,} test images have {len(test.labels):,} labels")
        unknown = sorted(set(test.labels.tolist()) - set(classes.tolist()))
        if unknown:
            raise UserError(f"{name}: test label {unknown[0]!r} is not among those of training")
    is_index = classes.dtype.kind in "iu" and classes[0] >= 0
    if is_index and classes[-1] < max(len(classes), len(names or ())):
        has_names = names is not None and classes[-1] < len(names)
        return names if has_names else tuple(map(str, range(int(classes[-1]) + 1)))
    for image_set in (train, test):
        if image_set.labels is not None:
            image_set.labels = np.searchsorted(classes, image_set.labels).astype(np.int64)
    return tuple(map(str, classes.tolist()))
