"""Attentive probe: one learned query attends to the tokens of a frozen layer, then a linear classifier.

V-JEPA (Bardes et al. 2024, arXiv 2404.08471, section 5), CAPI and AIM evaluate frozen encoders so: averaging the patch
tokens throws away where they are and which of them matter (V-JEPA: 56.7 averaged, 73.7 attended on Kinetics-400).
The block is timm's. Tokens of the clean images are taken once and kept in bfloat16 where they fit in
`runtime.memory_gb`, else encoded anew in each epoch. How much the loss still falls at the end is in the record.
The last layer is read, and each that a readout `LAYER/attentive` names, by a probe and a training of its own.

Deliberate difference: no augmentation, so that the probe sees what the other probes see.

Legend: B batch, N images, T tokens (class token first), D width, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from mim_bench import rng
from mim_bench.evaluate.context import EvalContext, ProtocolResult, from_memory
from mim_bench.train import loop
from mim_bench.train.log import convergence
from mim_bench.train.optimizer import adamw, decay_groups


class AttentiveProbe(nn.Module):
    """A cross-attention block with one query, and a linear classifier."""

    def __init__(self, dim: int, num_heads: int, num_classes: int, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.integer(seed=seed, stream="init attentive"))
            self.pool = AttentionPoolLatent(dim, num_heads=num_heads, norm_layer=nn.LayerNorm)
            self.norm = nn.LayerNorm(dim)
            self.head = nn.Linear(dim, num_classes)
            nn.init.trunc_normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> logits (B, K)."""
        return self.head(self.norm(self.pool(tokens)))


@dataclass
class AttentiveTask:
    """Probing, as the loop sees it; inputs are tokens, or 8-bit images to be encoded first."""

    probe: AttentiveProbe
    labels: Tensor
    encode: Callable[[Tensor], Tensor]
    """8-bit images (B, C, H, W) -> tokens (B, T, D) bfloat16."""

    @property
    def modules_to_save(self) -> dict[str, nn.Module]:
        """The probe; the encoder stays as it is."""
        return {"probe": self.probe}

    def loss(self, inputs: Tensor, index: Tensor, *, epoch: int, step: int) -> Tensor:
        """Mean cross-entropy, in float32."""
        tokens = inputs if inputs.ndim == 3 else self.encode(inputs)
        with torch.autocast(tokens.device.type, enabled=False):
            logits = self.probe(tokens.float())
        return F.cross_entropy(logits, self.labels[index.to(logits.device, non_blocking=True)])

    def after_step(self, step: int, num_steps: int) -> None:
        """Does nothing: no teacher follows a probe."""


def run(context: EvalContext) -> ProtocolResult:
    """Accuracy of each layer after the last epoch."""
    correct, notes = {}, ["attentive: tokens of the clean images"]
    for layer in context.features.attentive_layers:
        correct[f"{layer}/attentive"], state = _probe(context, layer)
        notes += state if layer == "last" else [f"{layer}: {line}" for line in state]
    return ProtocolResult(correct, tuple(notes))


def _probe(context: EvalContext, layer: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Correctness of a probe of one layer on the test images (N,), and whether it converged."""
    config, data = context.config, context.data
    name = "attentive" if layer == "last" else f"attentive-{layer}"

    def encode(images: Tensor) -> Tensor:
        return context.features.tokens(images, layer).bfloat16()

    schedule = config.attentive
    probe = AttentiveProbe(
        config.model.embed_dim, config.model.num_heads, data.num_classes, seed=config.seed
    ).to(context.device)
    task = AttentiveTask(probe, context.labels(data.train), encode)
    optimizer = adamw(decay_groups(probe.named_parameters(), schedule.weight_decay), schedule)
    training = context.training(name, schedule, data.train.num_images)
    loop.train(training, task, optimizer, _batches(context, encode), context.report)

    def classify(images: Tensor) -> Tensor:
        return probe(encode(images).float()).argmax(1)

    probe.eval()
    indices = torch.arange(context.test.num_images)
    predictions = context.features.over(classify, context.test, indices)
    correct = (predictions == context.labels(context.test)).cpu().numpy()
    return correct, convergence(training.log, "attentive")


def _batches(context: EvalContext, encode: Callable[[Tensor], Tensor]) -> loop.Batches:
    train, config, features = context.data.train, context.config, context.features
    num_tokens = features.geometry.num_patches + 1
    size = 2 * train.num_images * num_tokens * config.model.embed_dim
    if size <= config.runtime.memory_gb * 1e9:
        indices = torch.arange(train.num_images)
        return from_memory(features.over(encode, train, indices))

    def encoded(index_batches: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return train.batches(
            index_batches,
            features.crop,
            device=context.device,
            num_workers=context.data.num_workers,
        )

    return encoded
