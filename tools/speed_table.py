"""How fast a training step is here, next to other people's MAE: the table under "Speed" of the README.

    python tools/speed_table.py --mae MAE_CHECKOUT TIMM_0_3_2 --lightly LIGHTLY_CHECKOUT [--device cpu] [--threads 1]

MAE_CHECKOUT is facebookresearch/mae, LIGHTLY_CHECKOUT lightly-ai/lightly, both fetched for timing only and no part of
this project; TIMM_0_3_2 is a folder into which `pip install --no-deps --target` put the timm that the first asserts.
"timm" is what one writes first on timm's own ViT: all patches embedded, visible ones gathered, mask tokens put back.

Every side does forward, backward and AdamW on the same batch, in turns: an alternation is some steps of each, its ratio
that of the medians; the table has the median ratio with the least and the greatest of five alternations. Ours also
draws its masks by sample and turns 8-bit images into normalised floats, which the others are given. Writes
results/speed/<device>.json and, with --into PAGE, the table between `<!-- speed -->` and `<!-- end -->`.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

import alternate
import torch
from other_maes import Shape, TimmMae, lightly_mae, official_class, official_mae
from torch import nn

from mim_bench.analysis import write
from mim_bench.config.resolve import load_config
from mim_bench.evaluate import speed
from mim_bench.train import loop

SHAPES = {
    "`small`": Shape(32, 4, 96, 4, 3, 64, 1, 2, 256),
    "ViT-T": Shape(32, 4, 192, 12, 3, 192, 4, 3, 32),
    "ViT-B/16": Shape(224, 16, 768, 12, 12, 512, 8, 16, 4),
}
GPU_BATCHES = {"`small`": 256, "ViT-T": 4096, "ViT-B/16": 256}
"""Those that fill a GPU."""
STEPS = {
    "cpu": {"`small`": 8, "ViT-T": 6, "ViT-B/16": 1},
    "cuda": {"`small`": 20, "ViT-T": 10, "ViT-B/16": 10},
}
"""Timed in an alternation."""


def shapes_for(device: torch.device) -> dict[str, Shape]:
    """The shapes at the batches of a device."""
    if device.type == "cpu":
        return SHAPES
    return {name: replace(shape, batch_size=GPU_BATCHES[name]) for name, shape in SHAPES.items()}


def title(name: str, shape: Shape) -> str:
    """`ViT-T: 32 px, patch 4, 12 x 192, decoder 4 x 192, batch 32`."""
    return (
        f"{name}: {shape.image_size} px, patch {shape.patch_size}, {shape.depth} x {shape.embed_dim}, decoder "
        f"{shape.decoder_depth} x {shape.decoder_dim}, batch {shape.batch_size}"
    )


def our_stepper(shape: Shape, precision: str, device: torch.device) -> speed.Stepper:
    names = ("data.image_size", "model.patch_size", "model.embed_dim", "model.depth", "model.num_heads",
             "model.decoder_dim", "model.decoder_depth", "model.decoder_num_heads", "pretrain.batch_size")  # fmt: skip
    settings = dict(zip(names, astuple(shape), strict=False))
    settings |= {"runtime.device": device.type, "runtime.precision": precision}
    words = [f"{name}={value}" for name, value in settings.items()]
    return speed.Stepper(speed.sized(load_config("norm_pixel", "imagenet", words)), device)


def their_step(model: nn.Module, stepper: speed.Stepper) -> Callable[[], None]:
    """Forward, backward and AdamW as their training scripts have it, in the precision of ours."""
    model.to(stepper.device)
    fused = stepper.device.type == "cuda" or None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=fused)
    images = (stepper.images.float() / 255 - 0.5) / 0.25

    def step() -> None:
        with loop.autocast(stepper.device, stepper.config.runtime):
            loss = model(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def median_seconds(step: Callable[[], None], num_steps: int, device: torch.device) -> float:
    """Of some steps."""
    return statistics.median(speed.timed(step, device) for _ in range(num_steps))


def compare(
    name: str, steps: dict[str, Callable[[], None]], device: torch.device
) -> dict[str, list[float]]:
    """Side -> median seconds of a step in each alternation."""
    num_steps = STEPS[device.type][name]
    sides = {side: partial(median_seconds, step, num_steps, device) for side, step in steps.items()}
    return alternate.alternate(sides)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mae", nargs=2, metavar=("MAE_CHECKOUT", "TIMM_0_3_2"))
    parser.add_argument("--lightly", metavar="LIGHTLY_CHECKOUT")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", type=int, default=3, help="only the first so many")
    parser.add_argument("--out", type=Path, default=alternate.OUT)
    parser.add_argument("--into", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    official = official_class(*options.mae) if options.mae else None
    rows = []
    for name, shape in list(shapes_for(device).items())[: options.shapes]:
        for precision in ("float32", "bfloat16"):
            stepper = our_stepper(shape, precision, device)
            others = {"timm": TimmMae(shape)}
            if official:
                others["facebookresearch/mae"] = official_mae(official, shape)
            if options.lightly:
                others["lightly"] = lightly_mae(options.lightly, shape)
            steps = {alternate.OURS: stepper.step}
            steps |= {side: their_step(model, stepper) for side, model in others.items()}
            seconds = compare(name, steps, device)
            rows.append({"shape": title(name, shape), "precision": precision, "seconds": seconds})
            print(line(rows[-1]), flush=True)
    content = {"threads": options.threads, "torch": torch.__version__, "rows": rows}
    file, measured = alternate.write(options.out, "", device, content)
    if options.into:
        write.put_between(options.into, "<!-- speed -->", table(measured) + "\n")
    print(file)


def line(row: dict[str, Any]) -> str:
    """One row: our milliseconds, and how many times as long the others take."""
    seconds = dict(row["seconds"])
    ours = seconds.pop(alternate.OURS)
    cells = [row["shape"], row["precision"], f"{1000 * statistics.median(ours):.1f}"]
    cells += [alternate.ratios(ours, theirs) for theirs in seconds.values()]
    return "| " + " | ".join(cells) + " |"


def table(measured: dict[str, Any]) -> str:
    """The README's table of one file of measurements."""
    rows = measured["rows"]
    others = [name for name in rows[0]["seconds"] if name != alternate.OURS]
    heads = ["step", "precision", "here, ms", *(f"{name}, times as long" for name in others)]
    rule = "| --- | --- |" + " ---: |" * (1 + len(others))
    threads = f"{measured['threads']} thread" + "s" * (measured["threads"] > 1)
    note = (
        f"{measured['device']}, {threads}, torch {measured['torch']}, commit {measured['commit'][:12]}; the median "
        f"of {alternate.ALTERNATIONS} alternations and their range. `norm_pixel`, everything eager."
    )
    return "\n".join(["| " + " | ".join(heads) + " |", rule, *map(line, rows), "", note])


if __name__ == "__main__":
    main()
