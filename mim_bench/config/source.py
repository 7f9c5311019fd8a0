"""Data sources by name: what each one is called, takes and holds. `mim_bench.data.sources` opens them.

A new source is one entry here and one loader.
"""

from pathlib import Path
from typing import Literal

from mim_bench.errors import UserError, suggest
from mim_bench.schema import Frozen

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per channel, of images in [0, 1]; used throughout by ImageNet work."""


class SourceSize(Frozen):
    """Sizes of a source that are known without opening it."""

    num_train_images: int
    num_test_images: int
    image_size: tuple[int, int] | None
    """Height and width in pixels; None where images differ."""
    num_channels: int
    num_classes: int


class SourceSpec(Frozen):
    """One data source."""

    name: str
    title: str
    """Name of the data set in tables."""
    description: str
    """One line for `list data`."""
    loader: str
    """`module:function` of `(name, path or None) -> Loaded`; imported when it is opened."""
    path: Literal["none", "optional", "required"] = "none"
    """`required` if the source needs a path after a colon, `optional` if it may, else `none`."""
    size: SourceSize | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and std per channel that the literature fixes; None: those of the training split."""


def _size(train: int, test: int, side: int | None, channels: int, classes: int) -> SourceSize:
    return SourceSize(
        num_train_images=train,
        num_test_images=test,
        image_size=(side, side) if side else None,
        num_channels=channels,
        num_classes=classes,
    )


_TORCHVISION = "mim_bench.data.torchvision_sets:open_torchvision"
_BUILT_IN = (
    SourceSpec(
        name="embedded", title="embedded (Fashion-MNIST sample)",
        description="10,000 + 2,000 grey 28 x 28 images of Fashion-MNIST, in the package",
        loader="mim_bench.data.sources:open_embedded", size=_size(10_000, 2_000, 28, 1, 10),
    ),
    SourceSpec(
        name="cifar10", title="CIFAR-10", loader=_TORCHVISION, path="optional",
        description="CIFAR-10, 50,000 + 10,000 colour images of 32 x 32, 10 classes",
        size=_size(50_000, 10_000, 32, 3, 10),
    ),
    SourceSpec(
        name="cifar100", title="CIFAR-100", loader=_TORCHVISION, path="optional",
        description="CIFAR-100, 50,000 + 10,000 colour images of 32 x 32, 100 classes",
        size=_size(50_000, 10_000, 32, 3, 100),
    ),
    SourceSpec(
        name="fashion-mnist", title="Fashion-MNIST", loader=_TORCHVISION, path="optional",
        description="Fashion-MNIST, 60,000 + 10,000 grey images of 28 x 28, 10 classes",
        size=_size(60_000, 10_000, 28, 1, 10),
    ),
    SourceSpec(
        name="stl10", title="STL-10", loader=_TORCHVISION, path="optional",
        description="STL-10, its 5,000 + 8,000 labelled colour images of 96 x 96, 10 classes",
        size=_size(5_000, 8_000, 96, 3, 10),
    ),
    SourceSpec(
        name="imagenet", title="ImageNet-1K", loader="mim_bench.data.folder:open_folder",
        description="imagenet:PATH, ImageNet-1k with train/ and val/ of 1,000 class folders each",
        path="required", size=_size(1_281_167, 50_000, None, 3, 1000),
        normalisation=(IMAGENET_MEAN, IMAGENET_STD),
    ),
    SourceSpec(
        name="folder", title="own images (folder)", loader="mim_bench.data.folder:open_folder",
        description="folder:PATH, class folders (train/ and test/ or val/ if there), or flat without labels",
        path="required",
    ),
    SourceSpec(
        name="parquet", title="own images (parquet)", loader="mim_bench.data.parquet:open_parquet",
        description="parquet:PATH, train*.parquet and test*.parquet in the Hugging Face layout",
        path="required",
    ),
)  # fmt: skip

SOURCES: dict[str, SourceSpec] = {spec.name: spec for spec in _BUILT_IN}
"""Data sources by name."""


def check_source(name: str) -> None:
    """Refuses an unknown source, and a path too few or too many."""
    spec, (scheme, colon, argument) = source_spec(name), name.partition(":")
    if spec.path == "required" and not argument:
        raise UserError(f"data source {scheme!r} needs a path: {scheme}:PATH")
    if colon and (spec.path == "none" or not argument):
        raise UserError(
            f"data source {scheme!r} takes no path" if argument else f"{name!r}: no path given"
        )


def source_spec(name: str) -> SourceSpec:
    """The spec of `name` or `name:PATH`."""
    scheme = name.partition(":")[0]
    is_path = "/" in scheme or Path(name).exists() or (":" not in name and "/" in name)
    if scheme not in SOURCES and is_path:
        path = name.removeprefix("folder=").removeprefix("parquet=")
        raise UserError(
            f"no data source {name!r}; images in class folders: folder:{path}, Parquet files: parquet:{path}"
        )
    if scheme not in SOURCES:
        raise UserError(f"no data source {scheme!r}; {suggest(scheme, SOURCES)}")
    return SOURCES[scheme]
