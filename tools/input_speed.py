"""How fast 224-pixel training images are read here, next to torchvision's and timm's loaders: the README's input table.

    python tools/input_speed.py FOLDER [--workers 2] [--images 1024]

FOLDER holds class folders of photographs (`parquet:` data can be unpacked with --unpack FILE). Every side reads the
same number of images per alternation in batches of 64 with as many processes, decodes them, cuts a random resized
crop (scale 0.2 to 1, bicubic), flips half of them, and hands out normalised floats; five alternations after one that
warms up, each with fresh processes, as an epoch has. Writes results/speed/input-<device>.json.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import alternate
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mim_bench.config.resolve import load_config
from mim_bench.data.run_data import complete, open_data
from mim_bench.train.pretrain import views

SIZE, BATCH, SCALE = 224, 64, (0.2, 1.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Epoch = Callable[[], Iterator[Tensor]]
"""Batches (B, 3, 224, 224) float32 of one epoch, endless or not."""


def ours(folder: Path, workers: int) -> Epoch:
    """This project's pre-training input; normalised here, as the step does."""
    words = [f"data.source=folder:{folder}", f"runtime.num_workers={workers}", "runtime.device=cpu",
             "runtime.memory_gb=0.001", f"pretrain.batch_size={BATCH}", "evaluate.protocols=[]"]  # fmt: skip
    config = load_config("norm_pixel", "imagenet", words)
    cpu = torch.device("cpu")
    data = open_data(config, cpu)
    config = complete(config, data)
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def epoch() -> Iterator[Tensor]:
        order = torch.randperm(data.train.num_images).split(BATCH)
        for images, _ in views(config, data, order, 0, cpu, workers):
            yield images.float().sub_(mean).div_(std)

    return epoch


def of_torchvision(folder: Path, workers: int) -> Epoch:
    """torch.utils.data with torchvision's ImageFolder and transforms v2."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import InterpolationMode, v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, SCALE, interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    data = ImageFolder(str(folder), transform)
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers)
    return lambda: (images for images, _ in loader)


def of_timm(folder: Path, workers: int) -> Epoch:
    """timm's dataset and loader without its prefetcher, which needs a GPU."""
    from timm.data import create_dataset, create_loader

    data = create_dataset("", str(folder), is_training=True)
    loader = create_loader(
        data, SIZE, BATCH, is_training=True, use_prefetcher=False, no_aug=False, scale=SCALE, hflip=0.5,
        color_jitter=0.0, interpolation="bicubic", mean=MEAN, std=STD, num_workers=workers,
        persistent_workers=False,
    )  # fmt: skip
    return lambda: (images for images, _ in loader)


def images_per_s(epoch: Epoch, num_images: int) -> float:
    """Images of a second, the start of the processes included."""
    seen, start = 0, time.perf_counter()
    while seen < num_images:
        for images in epoch():
            seen += len(images)
            if seen >= num_images:
                break
    return seen / (time.perf_counter() - start)


def unpack(file: Path, folder: Path) -> None:
    """Images of a Parquet file as files in one class folder each."""
    table = pq.read_table(file)
    column = next(name for name in table.column_names if "im" in name)
    labels = table["label"].to_pylist() if "label" in table.column_names else [0] * len(table)
    for i, (image, label) in enumerate(zip(table[column], labels, strict=True)):
        place = folder / f"{label}" / f"{i:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(image["bytes"].as_py())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--unpack", type=Path)
    parser.add_argument("--out", type=Path, default=alternate.OUT)
    options = parser.parse_args()
    if options.unpack:
        unpack(options.unpack, options.folder)
    makers = {alternate.OURS: ours, "torchvision v2": of_torchvision, "timm": of_timm}
    sides = {name: make(options.folder, options.workers) for name, make in makers.items()}
    rates = alternate.alternate(
        {name: partial(images_per_s, epoch, options.images) for name, epoch in sides.items()}
    )
    for name, values in rates.items():
        ratios = alternate.ratios(rates[alternate.OURS], values)
        print(f"{name}: {statistics.median(values):.0f} images/s, {ratios} of mim_bench")
    content = {"workers": options.workers, "images": options.images, "images_per_s": rates}
    print(alternate.write(options.out, "input-", torch.device("cpu"), content)[0])


if __name__ == "__main__":
    main()
