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
import importlib
import json
import re
import statistics
import sys
import types
from collections import abc
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mim_bench.config.resolve import load_config
from mim_bench.evaluate import speed
from mim_bench.model.vit import LayerNorm, sincos_table
from mim_bench.records import provenance
from mim_bench.train import environment, loop

ROOT = Path(__file__).resolve().parents[1]
MASK_RATIO = 0.75
ALTERNATIONS = 5


@dataclass(frozen=True)
class Shape:
    """Sizes of a masked autoencoder; heads of 32 or 64 values as the presets have them."""

    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    decoder_dim: int
    decoder_depth: int
    decoder_num_heads: int
    batch_size: int
    steps: int
    """Timed in an alternation."""


CPU_SHAPES = {
    "`small`: 32 px, patch 4, 4 x 96, decoder 1 x 64, batch 256": Shape(
        32, 4, 96, 4, 3, 64, 1, 2, 256, 8
    ),
    "ViT-T: 32 px, patch 4, 12 x 192, decoder 4 x 192, batch 32": Shape(
        32, 4, 192, 12, 3, 192, 4, 3, 32, 6
    ),
    "ViT-B/16: 224 px, decoder 8 x 512, batch 4": Shape(224, 16, 768, 12, 12, 512, 8, 16, 4, 1),
}
GPU_SHAPES = {
    "`small`: 32 px, patch 4, 4 x 96, decoder 1 x 64, batch 256": Shape(
        32, 4, 96, 4, 3, 64, 1, 2, 256, 20
    ),
    "ViT-T: 32 px, patch 4, 12 x 192, decoder 4 x 192, batch 4096": Shape(
        32, 4, 192, 12, 3, 192, 4, 3, 4096, 10
    ),
    "ViT-B/16: 224 px, decoder 8 x 512, batch 256": Shape(
        224, 16, 768, 12, 12, 512, 8, 16, 256, 10
    ),
}
"""The shapes of the first table at batches that fill a GPU."""


class TimmMae(nn.Module):
    """MAE written plainly on timm's `VisionTransformer` and `Block`."""

    def __init__(self, shape: Shape) -> None:
        from timm.models.vision_transformer import Block, VisionTransformer

        super().__init__()
        self.encoder = VisionTransformer(
            shape.image_size, shape.patch_size, num_classes=0, embed_dim=shape.embed_dim,
            depth=shape.depth, num_heads=shape.num_heads, norm_layer=LayerNorm,
        )  # fmt: skip
        grid = (shape.image_size // shape.patch_size,) * 2
        self.patch, self.num_visible = shape.patch_size, int(grid[0] ** 2 * (1 - MASK_RATIO))
        dim = shape.decoder_dim
        self.embed, self.mask_token = (
            nn.Linear(shape.embed_dim, dim),
            nn.Parameter(torch.zeros(1, 1, dim)),
        )
        self.position = nn.Parameter(sincos_table(grid, dim)[None].float(), requires_grad=False)
        heads = shape.decoder_num_heads
        blocks = [
            Block(dim, heads, qkv_bias=True, norm_layer=LayerNorm)
            for _ in range(shape.decoder_depth)
        ]
        self.decoder = nn.Sequential(
            *blocks, LayerNorm(dim), nn.Linear(dim, shape.patch_size**2 * 3)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> mean squared error at hidden patches, normalised by patch."""
        vit = self.encoder
        x = vit.patch_embed(images) + vit.pos_embed[:, 1:]
        batch, num_patches, _ = x.shape
        order = torch.rand(batch, num_patches, device=x.device).argsort(1)
        x = x.gather(1, order[:, : self.num_visible, None].expand(-1, -1, x.shape[2]))
        cls = (vit.cls_token + vit.pos_embed[:, :1]).expand(batch, -1, -1)
        x = self.embed(vit.norm(vit.blocks(torch.cat([cls, x], 1))))
        hidden = self.mask_token.expand(batch, num_patches - self.num_visible, -1)
        tokens = torch.cat([x[:, 1:], hidden.to(x.dtype)], 1)
        back = order.argsort(1)[:, :, None].expand(-1, -1, tokens.shape[2])
        prediction = self.decoder(torch.cat([x[:, :1], tokens.gather(1, back)], 1) + self.position)[
            :, 1:
        ]
        side = images.shape[2] // self.patch
        patches = images.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)
        patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(batch, side * side, -1)
        std = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        errors = (prediction - (patches - patches.mean(-1, keepdim=True)) / std).square().mean(-1)
        is_hidden = torch.ones_like(errors).scatter(1, order[:, : self.num_visible], 0)
        return (errors * is_hidden).sum() / is_hidden.sum()


def official_class(checkout: str, old_timm: str) -> Callable[..., nn.Module]:
    """facebookresearch/mae's model class on its timm, which is then taken out of the way of ours."""
    shim = types.ModuleType("torch._six")
    vars(shim).update(container_abcs=abc, int_classes=int, string_classes=str, inf=float("inf"))
    sys.modules["torch._six"] = shim
    vars(np)["float"] = float
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "timm"}
    for name in ours:
        del sys.modules[name]
    sys.path[:0] = [checkout, old_timm]
    found = importlib.import_module("models_mae").MaskedAutoencoderViT
    del sys.path[:2]
    for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "util")]:
        del sys.modules[name]
    sys.modules.update(ours)
    return found


def official_mae(official: Callable[..., nn.Module], shape: Shape) -> Callable[[Tensor], Tensor]:
    """facebookresearch/mae's model of this shape: images -> loss."""
    model = official(
        img_size=shape.image_size, patch_size=shape.patch_size, embed_dim=shape.embed_dim, depth=shape.depth,
        num_heads=shape.num_heads, decoder_embed_dim=shape.decoder_dim, decoder_depth=shape.decoder_depth,
        decoder_num_heads=shape.decoder_num_heads, mlp_ratio=4, norm_layer=partial(nn.LayerNorm, eps=1e-6),
        norm_pix_loss=True,
    )  # fmt: skip
    return _Loss(model, lambda model, images: model(images, mask_ratio=MASK_RATIO)[0])


def lightly_mae(checkout: str, shape: Shape) -> Callable[[Tensor], Tensor]:
    """Lightly's modules put together as its documentation does, on the same timm as ours: images -> loss."""
    sys.path.insert(0, checkout)
    modules = importlib.import_module("lightly.models.modules")
    utils = importlib.import_module("lightly.models.utils")
    sys.path.remove(checkout)
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(
        shape.image_size, shape.patch_size, num_classes=0, embed_dim=shape.embed_dim,
        depth=shape.depth, num_heads=shape.num_heads, norm_layer=LayerNorm,
    )  # fmt: skip
    parts = nn.ModuleDict(
        {
            "encoder": modules.MaskedVisionTransformerTIMM(vit=vit),
            "embed": nn.Linear(shape.embed_dim, shape.decoder_dim),
            "decoder": modules.MaskedVisionTransformerDecoderTIMM(
                num_patches=vit.patch_embed.num_patches, embed_dim=shape.decoder_dim, depth=shape.decoder_depth,
                num_heads=shape.decoder_num_heads, num_prefix_tokens=1, mlp_ratio=4.0,
            ),
            "head": nn.Linear(shape.decoder_dim, shape.patch_size**2 * 3),
        }
    )  # fmt: skip
    length = vit.patch_embed.num_patches + 1

    def loss(parts: nn.ModuleDict, images: Tensor) -> Tensor:
        keep, hidden = utils.random_token_mask(
            size=(len(images), length), mask_ratio=MASK_RATIO, device=images.device
        )
        encoded = parts["embed"](parts["encoder"].encode(images=images, idx_keep=keep))
        tokens = encoded.new_zeros(len(images), length, encoded.shape[-1])
        decoded = parts["decoder"](utils.set_at_index(tokens, keep, encoded), idx_mask=hidden)
        prediction = parts["head"](utils.get_at_index(decoded, hidden))
        patches = utils.get_at_index(utils.patchify(images, shape.patch_size), hidden - 1)
        std = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        return nn.functional.mse_loss(prediction, (patches - patches.mean(-1, keepdim=True)) / std)

    return _Loss(parts, loss)


class _Loss(nn.Module):
    """A model and its loss of a batch."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, images: Tensor) -> Tensor:
        return self.loss(self.model, images)


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


def alternate(
    steps: dict[str, Callable[[], None]], num_steps: int, device: torch.device
) -> dict[str, list[float]]:
    """Median seconds of a step of each side, one value an alternation; a first alternation warms up."""
    medians: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(1 + ALTERNATIONS):
        for name, step in steps.items():
            seconds = [speed.timed(step, device) for _ in range(num_steps)]
            if turn:
                medians[name].append(statistics.median(seconds))
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mae", nargs=2, metavar=("MAE_CHECKOUT", "TIMM_0_3_2"))
    parser.add_argument("--lightly", metavar="LIGHTLY_CHECKOUT")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", type=int, default=3, help="only the first so many")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "speed")
    parser.add_argument("--into", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    official = official_class(*options.mae) if options.mae else None
    shapes = CPU_SHAPES if device.type == "cpu" else GPU_SHAPES
    rows = []
    for title, shape in list(shapes.items())[: options.shapes]:
        for precision in ("float32", "bfloat16"):
            stepper = our_stepper(shape, precision, device)
            others = {"timm": TimmMae(shape)}
            if official:
                others["facebookresearch/mae"] = official_mae(official, shape)
            if options.lightly:
                others["lightly"] = lightly_mae(options.lightly, shape)
            steps = {"mim_bench": stepper.step} | {
                name: their_step(model, stepper) for name, model in others.items()
            }
            rows.append(
                {
                    "shape": title,
                    "precision": precision,
                    "seconds": alternate(steps, shape.steps, device),
                }
            )
            print(line(rows[-1]), flush=True)
    facts = environment.device_facts(device)
    measured = {
        "device": facts.name, "threads": options.threads, "torch": torch.__version__,
        "commit": provenance.code().commit, "rows": rows,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{re.sub('[^a-z0-9]+', '-', facts.name.lower()).strip('-')}.json"
    file.write_text(json.dumps(measured, indent=1) + "\n")
    if options.into:
        insert(options.into, table(measured))
    print(file)


def line(row: dict) -> str:
    """One row: our milliseconds, and how many times as long the others take."""
    ours = row["seconds"]["mim_bench"]
    cells = [row["shape"], row["precision"], f"{1000 * statistics.median(ours):.1f}"]
    for name, theirs in row["seconds"].items():
        if name != "mim_bench":
            ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    return "| " + " | ".join(cells) + " |"


def table(measured: dict) -> str:
    """The README's table of one file of measurements."""
    rows = measured["rows"]
    others = [name for name in rows[0]["seconds"] if name != "mim_bench"]
    heads = ["step", "precision", "here, ms", *(f"{name}, times as long" for name in others)]
    rule = "| --- | --- |" + " ---: |" * (1 + len(others))
    threads = f"{measured['threads']} thread" + "s" * (measured["threads"] > 1)
    note = (
        f"{measured['device']}, {threads}, torch {measured['torch']}, commit {measured['commit'][:12]}; the median "
        f"of {ALTERNATIONS} alternations and their range. `norm_pixel`, everything eager."
    )
    return "\n".join(["| " + " | ".join(heads) + " |", rule, *map(line, rows), "", note])


def insert(page: Path, text: str) -> None:
    """Puts the table between the page's marks."""
    before, mark, rest = page.read_text().partition("<!-- speed -->")
    _, end, after = rest.partition("<!-- end -->")
    if not mark or not end:
        raise SystemExit(f"{page} has no <!-- speed --> ... <!-- end -->")
    page.write_text(f"{before}{mark}\n{text}\n{end}{after}")


if __name__ == "__main__":
    main()
