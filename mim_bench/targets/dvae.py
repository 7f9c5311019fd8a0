"""Tokens of a discrete VAE: the target of BEiT (Bao et al. 2022, arXiv 2106.08254).

A frozen tokenizer (DALL-E's: Ramesh et al. 2021, arXiv 2102.12092) turns the image into a grid of token
ids, one for each patch; the model classifies the token of each hidden patch. The tokenizer is fitted to
the run's own training images, or read from a local copy of the published encoder.

Deliberate differences: BEiT cuts one crop from the photograph and resizes it twice, to the model's
224 pixels and to the tokenizer's 112; here the tokenizer's image is the model's image resized, with
the same Lanczos window but without rounding to 8 bits between. The tokenizer always computes in
float32. A tokenizer of our own down-samples by the largest power of two that is not above the patch
size, at most 8, so that small patches need no resizing.

Legend: B batch, C channels, H W image, L patches (h x w grid), V vocabulary, f pixels a side of a token.
"""

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_bench import rng
from mim_bench.config.target_params import DvaeParams
from mim_bench.errors import UserError
from mim_bench.target import TargetContext, TrainingImages, to_rgb
from mim_bench.targets.class_target import ClassTarget
from mim_bench.targets.fitted import FittedTarget, check_use
from mim_bench.targets.tokenizer import training
from mim_bench.targets.tokenizer.decoder import Decoder, initialize_decoder
from mim_bench.targets.tokenizer.encoder import Encoder, initialize, map_pixels
from mim_bench.targets.tokenizer.lanczos import resize
from mim_bench.targets.tokenizer.weights import load_encoder

_logger = logging.getLogger(__name__)

_MAX_FACTOR = 8


def factor_for(patch_size: int) -> int:
    """Down-sampling of our own tokenizer: the largest power of two <= `patch_size`, at most 8."""
    return min(_MAX_FACTOR, 2 ** int(math.log2(patch_size)))


def palette(num: int) -> Tensor:
    """(num, 3) colours in [0, 1], all distinct, entry i the same for every `num`.

    A Kronecker sequence in the colour cube, steps 1/g, 1/g^2, 1/g^3 with g^4 = g + 1.
    """
    g = 1.2207440846057596
    steps = torch.tensor([g**-1, g**-2, g**-3], dtype=torch.float64)
    return ((0.5 + torch.arange(1, num + 1)[:, None] * steps) % 1).float()


class DvaeTarget(ClassTarget, FittedTarget):
    """The id of each patch's token; `forward` -> (B, L) int64, `dim` = V."""

    Params = DvaeParams
    version = DvaeParams.version

    weights_sha256: str | None = None
    """SHA-256 of the weights file; None for a tokenizer that is fitted here."""
    encoder: Encoder
    decoder: Decoder | None

    def __init__(self, params: DvaeParams, context: TargetContext) -> None:
        super().__init__(params, context)
        geometry = context.geometry
        self.params: DvaeParams = params
        if params.weights is None:
            self._build_own()
        else:
            self._load_published(Path(params.weights).expanduser())
        self.fitted.fill_(params.weights is not None)
        self.dim = self.encoder.vocab_size
        factor = self.encoder.factor
        self.token_image_size = (geometry.grid[0] * factor, geometry.grid[1] * factor)
        """Height and width in pixels at which one token is one patch."""
        self.requires_grad_(False)
        self.train()

    def _build_own(self) -> None:
        params, chans = self.params, self.geometry.in_chans
        num_pools = int(math.log2(factor_for(self.geometry.patch_size)))
        self.encoder = Encoder(
            width=params.width,
            blocks_per_group=params.blocks_per_group,
            vocab_size=params.vocab_size,
            in_chans=chans,
            num_pools=num_pools,
            gain=params.residual_gain,
        )
        self.decoder = Decoder(
            width=params.width,
            blocks_per_group=params.blocks_per_group,
            vocab_size=params.vocab_size,
            out_chans=chans,
            num_pools=num_pools,
            gain=params.residual_gain,
        )

    def _load_published(self, path: Path) -> None:
        loaded = load_encoder(path)
        self.encoder, self.decoder = loaded.encoder, None
        self.weights_sha256 = loaded.sha256
        if loaded.sha256 != self.params.weights_sha256:
            raise UserError(
                f"weights file {path} has changed: its sha256 is {loaded.sha256}, the config's "
                f"weights_sha256 is {self.params.weights_sha256}"
            )
        num_allowed, num_given = loaded.encoder.in_chans, self.geometry.in_chans
        if num_given not in (num_allowed, 1):
            raise UserError(
                f"in_chans is {num_given}, but the encoder of weights file {path} takes {num_allowed}; "
                f"allowed: {num_allowed}, or 1 (repeated)"
            )
        if num_given != num_allowed:
            _logger.info("the tokenizer's %d channels are the image's one, repeated", num_allowed)
        changed = self.params.model_dump(exclude_defaults=True)
        others = sorted(changed.keys() - {"weights", "weights_sha256"})
        if others:
            _logger.warning("weights are given, so these are without effect: %s", ", ".join(others))

    def train(self, mode: bool = True) -> "DvaeTarget":
        """Stays in evaluation mode: a frozen network."""
        super().train(False)
        return self

    def prepare(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C', h*f, w*f) in [0, 1], the tokenizer's image."""
        expected = (self.geometry.in_chans, *self.geometry.image_size)
        if tuple(images.shape[1:]) != expected:
            raise UserError(
                f"images have shape {tuple(images.shape)}; allowed: (B, {', '.join(map(str, expected))})"
            )
        if images.shape[1] != self.encoder.in_chans:
            images = images.expand(-1, self.encoder.in_chans, -1, -1)
        return resize(images.float(), self.token_image_size)

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, V, h, w), float32 whatever autocast says."""
        with torch.autocast(images.device.type, enabled=False):
            return self.encoder(map_pixels(self.prepare(images)))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L) int64 token ids."""
        self.require_fit()
        return self.logits(images).argmax(dim=1).flatten(1)

    @torch.no_grad()
    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L) ids -> (B, 3, H, W): decoded, or a colour for each id where there is no decoder."""
        tokens = values.unflatten(1, self.geometry.grid)
        size = self.geometry.image_size
        if self.decoder is None:
            colours = palette(self.dim).to(tokens.device)[tokens].movedim(-1, 1)
            return F.interpolate(colours, size=size, mode="nearest")
        with torch.autocast(tokens.device.type, enabled=False):
            mean, _ = self.decoder.from_tokens(tokens)
        decoded = training.reconstruction(self.params.reconstruction, mean)
        return to_rgb(resize(decoded, size))

    def fit(self, images: TrainingImages, *, seed: int) -> dict[str, float]:
        """Trains the tokenizer; the values are of its arg-max tokens on one more pass over the images.

        Raises:
            UserError: no images, or a perplexity below a quarter of the vocabulary afterwards.
        """
        if self.params.weights is not None or self.decoder is None:
            raise TypeError("a tokenizer read from a weights file has nothing to fit")
        if images.num_images < 1:
            raise UserError("the dvae target needs at least 1 training image to be fitted, not 0")
        started = time.perf_counter()
        params = self.params
        device = self.fitted.device
        schedule = training.Schedule(
            num_steps=params.fit_epochs * math.ceil(images.num_images / params.fit_batch_size),
            lr=params.fit_lr,
            temperature_start=params.temperature_start,
            temperature_end=params.temperature_end,
            temperature_fraction=params.temperature_fraction,
            kl_weight=params.kl_weight,
            balance_weight=params.balance_weight,
            kl_warmup_fraction=params.kl_warmup_fraction,
        )
        reconstruction = params.reconstruction

        def one_pass() -> Iterator[Tensor]:
            return training.rebatch((self.prepare(b) for b in images), params.fit_batch_size)

        devices = [device] if device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            torch.manual_seed(rng.integer(seed=seed, stream="dvae"))
            initialize(self.encoder)
            initialize_decoder(self.decoder)
            self.requires_grad_(True)
            try:
                passes = (one_pass() for _ in range(params.fit_epochs))
                loss = training.train(self.encoder, self.decoder, passes, schedule, reconstruction)
            finally:
                self.requires_grad_(False)
        book = training.measure(self.encoder, self.decoder, one_pass(), reconstruction)
        remedy = (
            f"raise fit_epochs ({params.fit_epochs}: {schedule.num_steps} updates) or balance_weight "
            f"({params.balance_weight}), lower fit_lr ({params.fit_lr}) or vocab_size"
        )
        check_use(book.perplexity, "vocab_size", params.vocab_size, remedy, loss=loss)
        self.fitted.fill_(True)
        return {
            "codebook_use": book.use,
            "codebook_perplexity": book.perplexity,
            "reconstruction_loss": loss,
            "reconstruction_mse": book.mse,
            "fit_seconds": time.perf_counter() - started,
        }
