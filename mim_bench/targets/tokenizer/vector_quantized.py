"""Targets that are the tokens of a vector-quantised autoencoder, fitted to the run's images.

What they share: the convolutional encoder of `dvae`, the codebook, the fit and its gate. What a decoder makes of the
codes, and what it is compared with, is the target's own; so is the frozen network that the comparison needs.

Legend: B batch, C channels, H W image, L patches (h x w grid), c width of a code, V vocabulary = dim.
"""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mim_bench import rng
from mim_bench.config.teacher_params import VqParams
from mim_bench.errors import UserError
from mim_bench.target import TargetContext, TrainingImages
from mim_bench.targets import dvae
from mim_bench.targets.class_target import ClassTarget
from mim_bench.targets.fitted import FittedTarget, check_use, perplexity
from mim_bench.targets.moving_average import cosine
from mim_bench.targets.teacher import frozen_teacher
from mim_bench.targets.tokenizer.decoder import Decoder
from mim_bench.targets.tokenizer.encoder import Encoder, initialize, map_pixels
from mim_bench.targets.tokenizer.lanczos import resize
from mim_bench.targets.tokenizer.quantizer import Quantizer
from mim_bench.targets.tokenizer.training import rebatch

_WARM_UP = 0.02
"""Share of a fit's updates over which the learning rate rises."""


class VqTarget(ClassTarget, FittedTarget):
    """The code of each patch; `forward` -> (B, L) int64."""

    def __init__(self, params: VqParams, context: TargetContext) -> None:
        super().__init__(params, context)
        self.dim = params.vocab_size
        factor = dvae.factor_for(self.geometry.patch_size)
        self.num_pools = int(math.log2(factor))
        self.token_image_size = (self.geometry.grid[0] * factor, self.geometry.grid[1] * factor)
        """Height and width in pixels at which one code is one patch."""
        self.encoder = Encoder(
            width=params.width,
            blocks_per_group=params.blocks_per_group,
            vocab_size=params.code_width,
            in_chans=self.geometry.in_chans,
            num_pools=self.num_pools,
            gain=1.0,
        )
        self.quantizer = Quantizer(self.dim, params.code_width, params.decay)
        self.teacher = frozen_teacher(params, context)
        self.decoder = self.make_decoder()
        self.requires_grad_(False)
        self.train()

    def make_decoder(self) -> Decoder:
        """Decoder from codes (B, c, h, w)."""
        raise NotImplementedError

    def distance(self, codes: Tensor, images: Tensor) -> Tensor:
        """Loss of the fit: distance of decoded codes (B, c, h, w) from images (B, C, H, W), a scalar."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "VqTarget":
        """Stays in evaluation mode: frozen networks."""
        super().train(False)
        return self

    def outputs(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, c, h, w)."""
        return self.encoder(map_pixels(resize(images.float(), self.token_image_size)))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L) int64."""
        self.require_fit()
        return self.quantizer.index(self.outputs(images)).flatten(1)

    def decoded(self, codes: Tensor) -> Tensor:
        """Codes (B, c, h, w) -> what the decoder makes of them, given values of unit variance."""
        return self.decoder(codes * self.params.code_width**0.5)[0]

    def codes(self, values: Tensor) -> Tensor:
        """Codes of indices (B, L), as (B, c, h, w)."""
        return self.quantizer.look_up(values.unflatten(1, self.geometry.grid))

    def fit(self, images: TrainingImages, *, seed: int) -> dict[str, float]:
        """Trains the tokenizer; the values are of its codes on one more pass over the images.

        Raises:
            UserError: no images, or a perplexity below a quarter of the vocabulary afterwards.
        """
        if images.num_images < 1:
            raise UserError("the tokenizer needs at least 1 training image to be fitted, not 0")
        started = time.perf_counter()
        device = self.fitted.device
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            torch.manual_seed(rng.integer(seed=seed, stream="vq"))
            initialize(self.encoder)
            initialize(self.decoder)
            loss = self._train(images)
        with torch.no_grad():
            indices = torch.cat(
                [self.quantizer.index(self.outputs(batch)).cpu() for batch in images]
            )
        codebook_perplexity = perplexity(indices, self.dim)
        self._check(codebook_perplexity, loss)
        self.fitted.fill_(True)
        return {
            "codebook_use": len(indices.unique()) / self.dim,
            "codebook_perplexity": codebook_perplexity,
            "reconstruction_loss": loss,
            "fit_seconds": time.perf_counter() - started,
        }

    def _train(self, images: TrainingImages) -> float:
        """Updates encoder, decoder and codes; returns the mean distance over the last pass."""
        params = self.params
        num_steps = params.fit_epochs * math.ceil(images.num_images / params.fit_batch_size)
        trained = nn.ModuleList([self.encoder, self.decoder]).requires_grad_(True)
        # faster on a CPU; undone below, so that a reloaded state computes with the same kernels
        trained.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        optimizer = torch.optim.Adam(trained.parameters(), betas=(0.9, 0.99))
        last: list[Tensor] = []
        for step, (epoch, batch) in enumerate(self._batches(images)):
            progress = step / num_steps
            for group in optimizer.param_groups:
                group["lr"] = params.fit_lr * min(1, (progress + 1e-3) / _WARM_UP)
                group["lr"] *= cosine(1.0, 0.01, progress)
            outputs = self.outputs(batch)
            self.quantizer.update(outputs.detach())
            codes, commitment = self.quantizer(outputs)
            distance = self.distance(codes, batch)
            optimizer.zero_grad(set_to_none=True)
            (distance + params.commitment * commitment).backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            if epoch == params.fit_epochs - 1:
                last.append(distance.detach())
        trained.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        trained.requires_grad_(False)
        return float(torch.stack(last).mean())

    def _batches(self, images: TrainingImages) -> Iterator[tuple[int, Tensor]]:
        for epoch in range(self.params.fit_epochs):
            for batch in rebatch(images, self.params.fit_batch_size):
                yield epoch, batch

    def _check(self, codebook_perplexity: float, loss: float) -> None:
        params = self.params
        remedy = (
            f"raise fit_epochs ({params.fit_epochs}), lower decay ({params.decay}), fit_lr ({params.fit_lr}) or "
            "vocab_size"
        )
        check_use(codebook_perplexity, "vocab_size", self.dim, remedy, loss=loss)
