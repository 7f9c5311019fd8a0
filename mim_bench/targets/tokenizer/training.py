"""Fits a discrete VAE to images (Ramesh et al. 2021, section 2.1 and appendix A.2, arXiv 2102.12092).

The encoder's logits are relaxed with Gumbel noise and a temperature that is lowered to its end value;
the decoder's output is scored by the logit-Laplace likelihood (or a Gaussian one); the KL divergence
of each token's distribution to the uniform one is added with a weight that is warmed up.

Deliberate differences, all for fits of minutes where the paper trained 3 million updates: a term that
requires the tokens of a whole batch to be evenly used (`imbalance`), without which most of the vocabulary
dies within an epoch; the decoder's token vectors start with unit variance; no average of the weights,
no weight decay, one learning rate for both networks falling by a cosine to a hundredth, a floor under
the log scale (images with constant areas have no finite likelihood without one).
The result is a function of the images and the generator's state (on CPU with equal thread count).

Legend: B batch, C channels, V vocabulary, h w token grid, f pixels a side of a token.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_bench.config.target_params import Reconstruction
from mim_bench.targets.tokenizer.decoder import Decoder
from mim_bench.targets.tokenizer.encoder import Encoder, map_pixels, unmap_pixels

LOG_SCALE_FLOOR = -3.0
"""About the width of one 8-bit level in logit units, so a likelihood cannot grow without bound."""
L2_STD = 0.05
"""Standard deviation of the Gaussian likelihood, of values in [0, 1]."""


@dataclass(frozen=True)
class Schedule:
    """Schedule of what changes from step to step; fractions are of all steps."""

    num_steps: int
    lr: float
    temperature_start: float
    temperature_end: float
    temperature_fraction: float
    kl_weight: float
    balance_weight: float
    kl_warmup_fraction: float

    def lr_at(self, step: int) -> float:
        """A short linear start, then a cosine down to a hundredth."""
        num_warmup = max(1, self.num_steps // 50)
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.num_steps))
        return self.lr * min(1.0, (step + 1) / num_warmup) * (0.01 + 0.99 * cosine)

    def temperature_at(self, step: int) -> float:
        """Geometric from start to end, then constant."""
        progress = min(1.0, step / max(1.0, self.temperature_fraction * self.num_steps))
        return self.temperature_start * (self.temperature_end / self.temperature_start) ** progress

    def warmup_at(self, step: int) -> float:
        """Factor on `kl_weight` and `balance_weight`: linear from 0 to 1, then constant."""
        return min(1.0, step / max(1.0, self.kl_warmup_fraction * self.num_steps))


def reconstruction_loss(
    distribution: Reconstruction, mean: Tensor, log_scale: Tensor, images: Tensor
) -> Tensor:
    """Decoder output and (B, C, H, W) images in [0, 1] -> scalar, nats a value."""
    if distribution == "l2":
        error = (torch.sigmoid(mean) - images) ** 2
        return error.mean() / (2 * L2_STD**2)
    mapped = map_pixels(images)
    # A soft floor keeps a gradient where a plain clamp would have none.
    log_scale = LOG_SCALE_FLOOR + F.softplus(log_scale - LOG_SCALE_FLOOR)
    error = (torch.logit(mapped) - mean).abs() * torch.exp(-log_scale)
    density = math.log(2) + log_scale + torch.log(mapped * (1 - mapped))
    return (error + density).mean()


def reconstruction(distribution: Reconstruction, mean: Tensor) -> Tensor:
    """The decoder's mean -> (B, C, H, W) in [0, 1]."""
    return torch.sigmoid(mean) if distribution == "l2" else unmap_pixels(torch.sigmoid(mean))


def kl_to_uniform(logits: Tensor) -> Tensor:
    """(B, V, h, w) -> scalar, nats a token: log V minus the mean entropy."""
    log_probability = F.log_softmax(logits, dim=1)
    return (log_probability.exp() * log_probability).sum(dim=1).mean() + math.log(logits.shape[1])


def imbalance(logits: Tensor) -> Tensor:
    """(B, V, h, w) -> scalar: log V minus the entropy of the mean distribution over all tokens."""
    mean = F.softmax(logits, dim=1).mean(dim=(0, 2, 3))
    return math.log(logits.shape[1]) - torch.special.entr(mean).sum()


def gumbel_softmax(logits: Tensor, temperature: float) -> Tensor:
    """(B, V, h, w) logits -> relaxed one-hot of the same shape, noise from torch's generator."""
    uniform = torch.rand_like(logits).clamp_min(torch.finfo(logits.dtype).tiny)
    noise = -torch.log(-torch.log(uniform))
    return F.softmax((logits + noise) / temperature, dim=1)


def rebatch(batches: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same images in the same order, `size` at a time; the last batch may be smaller."""
    pending: list[Tensor] = []
    count = 0
    for batch in batches:
        pending.append(batch)
        count += len(batch)
        if count >= size:
            joined = torch.cat(pending)
            num_divisible = count - count % size
            yield from joined[:num_divisible].split(size)
            pending, count = [joined[num_divisible:]], count - num_divisible
    if count:
        yield torch.cat(pending)


def train(
    encoder: Encoder,
    decoder: Decoder,
    epochs: Iterable[Iterable[Tensor]],
    schedule: Schedule,
    distribution: Reconstruction,
) -> float:
    """Trains both in place; an epoch yields (B, C, h*f, w*f) in [0, 1].

    Returns the mean of the reconstruction loss over the last epoch, nats a value.
    """
    # A third faster on a CPU; undone below, so that a reloaded state computes with the same kernels.
    encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    decoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=schedule.lr, betas=(0.9, 0.99))
    values_per_token = encoder.factor**2 * encoder.in_chans
    step = 0
    last_epoch: list[Tensor] = []
    for epoch in epochs:
        last_epoch = []
        for images in epoch:
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(step)
            images = images.contiguous(memory_format=torch.channels_last)
            logits = encoder(map_pixels(images))
            relaxed = gumbel_softmax(logits, schedule.temperature_at(step))
            mean, log_scale = decoder(relaxed)
            reconstructed = reconstruction_loss(distribution, mean, log_scale, images)
            regularizer = schedule.kl_weight * kl_to_uniform(logits)
            regularizer = regularizer + schedule.balance_weight * imbalance(logits)
            loss = reconstructed + schedule.warmup_at(step) / values_per_token * regularizer
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            last_epoch.append(reconstructed.detach())
            step += 1
    encoder.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    decoder.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    return float(torch.stack(last_epoch).mean()) if last_epoch else math.nan


@dataclass(frozen=True)
class Codebook:
    """Statistics of the arg-max tokens of a set of images: their use, and their reconstruction error."""

    use: float
    """Fraction of the vocabulary that occurs."""
    perplexity: float
    """exp of the entropy of the token frequencies: the number of equally used entries."""
    mse: float
    """Mean squared error of the decoded tokens, images in [0, 1]."""


@torch.no_grad()
def measure(
    encoder: Encoder, decoder: Decoder, batches: Iterable[Tensor], distribution: Reconstruction
) -> Codebook:
    """Batches of (B, C, h*f, w*f) in [0, 1] -> values over all of them."""
    counts = torch.zeros(encoder.vocab_size, dtype=torch.float64)
    error, num_values = 0.0, 0
    for images in batches:
        tokens = encoder(map_pixels(images)).argmax(dim=1)
        decoded = reconstruction(distribution, decoder.from_tokens(tokens)[0])
        counts += torch.bincount(tokens.flatten(), minlength=len(counts)).cpu()
        error += float((decoded - images).square().sum())
        num_values += images.numel()
    frequency = counts / counts.sum()
    perplexity = float(torch.special.entr(frequency).sum().exp())
    used_share = float((counts > 0).double().mean())
    return Codebook(use=used_share, perplexity=perplexity, mse=error / num_values)
