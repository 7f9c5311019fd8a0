"""Times our training step against facebookresearch/mae's model at the same sizes, in one run.

    python tests/compare_speed.py MAE_CHECKOUT TIMM_0_3_2 [--device cpu] [--steps 20]

MAE_CHECKOUT is a folder with `models_mae.py` (fetched for timing only, no part of this project);
TIMM_0_3_2 is a folder into which `pip install --no-deps --target` put the timm it asserts. Both sides
do forward, backward and torch's AdamW on the same batch, taking turns; ours also draws its masks and
turns 8-bit images into floats. Not a test: it prints a table.
"""

import argparse
import collections.abc
import importlib
import statistics
import sys
import types
from functools import partial

import numpy as np
import torch

SHAPES = {
    "32 px, patch 4, 12 x 192, decoder 2 x 96, batch 128": (32, 4, 192, 12, 3, 96, 2, 3, 128),
    "ViT-B/16, 224 px, decoder 8 x 512, batch 8": (224, 16, 768, 12, 12, 512, 8, 16, 8),
}


def official_class(checkout: str, old_timm: str):
    """Their model class on their timm, which is then taken out of the way of ours."""
    shim = types.ModuleType("torch._six")
    shim.container_abcs = collections.abc
    shim.int_classes, shim.string_classes, shim.inf = int, str, float("inf")
    sys.modules["torch._six"] = shim
    np.float = float
    sys.path[:0] = [checkout, old_timm]
    found = importlib.import_module("models_mae").MaskedAutoencoderViT
    del sys.path[:2]
    for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "util")]:
        del sys.modules[name]
    return found


def compare(official, shape: tuple[int, ...], device: torch.device, steps: int) -> dict[str, float]:
    """Median seconds of a step of each side."""
    from mim_bench.config.resolve import load_config
    from mim_bench.evaluate import speed
    from mim_bench.train import loop

    size, patch, width, depth, heads, d_width, d_depth, d_heads, batch = shape
    settings = {
        "data.image_size": size, "model.patch_size": patch, "model.embed_dim": width,
        "model.depth": depth, "model.num_heads": heads, "model.decoder_dim": d_width,
        "model.decoder_depth": d_depth, "model.decoder_num_heads": d_heads,
        "pretrain.batch_size": batch, "runtime.device": device.type,
    }  # fmt: skip
    overrides = [f"{key}={value}" for key, value in settings.items()]
    config = speed._sized(load_config("norm_pixel", "imagenet", overrides))
    ours = speed.Stepper(config, device)
    theirs = official(
        img_size=size, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads,
        decoder_embed_dim=d_width, decoder_depth=d_depth, decoder_num_heads=d_heads,
        mlp_ratio=4, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), norm_pix_loss=True,
    ).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, betas=(0.9, 0.95))
    images = (ours.images.float() / 255 - 0.5) / 0.25

    def their_step() -> None:
        with loop.autocast(device, config.runtime):
            loss = theirs(images, mask_ratio=0.75)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(3 + steps):
        for name, step in (("ours", ours.step), ("theirs", their_step)):
            seconds = speed.timed(step, device)
            if turn >= 3:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout")
    parser.add_argument("old_timm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    official = official_class(options.checkout, options.old_timm)
    for title, shape in SHAPES.items():
        seconds = compare(official, shape, torch.device(options.device), options.steps)
        ours, theirs = 1000 * seconds["ours"], 1000 * seconds["theirs"]
        print(f"{title}: ours {ours:.1f} ms, mae {theirs:.1f} ms, {theirs / ours:.2f}x")


if __name__ == "__main__":
    main()
