"""The encoder of DALL-E's discrete VAE (Ramesh et al. 2021, arXiv 2102.12092).

Parameter names are those of the published encoder, so that its weights load without conversion.
With `num_pools` 3 it is the published architecture: four groups of residual blocks, widths 1, 2, 4
and 8 times `width`, a max-pool after each group but the last.

Deliberate differences: `num_pools` and the gain of the residual paths are free (a short fit on small
images needs other values); everything is float32, where the published code uses float16 on a GPU.
Parameters are built as zeros, so that building draws no random numbers; `initialize` sets them.

Legend: B batch, C channels, H W image, V vocabulary, f = 2 ** num_pools the down-sampling.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOGIT_LAPLACE_EPS = 0.1


def map_pixels(images: Tensor) -> Tensor:
    """Values in [0, 1] -> [0.1, 0.9], where the logit of DALL-E's pixel likelihood is finite."""
    return (1 - 2 * LOGIT_LAPLACE_EPS) * images + LOGIT_LAPLACE_EPS


def unmap_pixels(values: Tensor) -> Tensor:
    """The inverse of `map_pixels`, clamped to [0, 1]."""
    return ((values - LOGIT_LAPLACE_EPS) / (1 - 2 * LOGIT_LAPLACE_EPS)).clamp(0, 1)


class Conv2d(nn.Module):
    """A convolution that keeps the size (zero padding), with parameters called `w` and `b`."""

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(out_chans, in_chans, kernel_size, kernel_size))
        self.b = nn.Parameter(torch.zeros(out_chans))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """Identity path (1x1 convolution where the width changes) + gain * residual path."""

    def __init__(
        self, in_chans: int, out_chans: int, *, kernel_sizes: tuple[int, ...], gain: float
    ) -> None:
        super().__init__()
        hidden = max(1, out_chans // 4)
        widths = [in_chans] + [hidden] * (len(kernel_sizes) - 1) + [out_chans]
        self.gain = gain
        self.id_path = (
            nn.Identity() if in_chans == out_chans else Conv2d(in_chans, out_chans, kernel_size=1)
        )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel_size in enumerate(kernel_sizes, start=1):
            layers[f"relu_{i}"] = nn.ReLU()
            layers[f"conv_{i}"] = Conv2d(widths[i - 1], widths[i], kernel_size)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


def published_gain(num_pools: int, blocks_per_group: int) -> float:
    """Gain of a residual path in the published networks: 1 / (number of blocks) ** 2."""
    return 1 / ((num_pools + 1) * blocks_per_group) ** 2


class Encoder(nn.Module):
    """(B, C, H, W) mapped pixels -> (B, V, H/f, W/f) logits."""

    def __init__(
        self,
        *,
        width: int = 256,
        blocks_per_group: int = 2,
        vocab_size: int = 8192,
        in_chans: int = 3,
        num_pools: int = 3,
        gain: float | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.blocks_per_group = blocks_per_group
        self.vocab_size = vocab_size
        self.in_chans = in_chans
        self.num_pools = num_pools
        if gain is None:
            gain = published_gain(num_pools, blocks_per_group)
        blocks: OrderedDict[str, nn.Module] = OrderedDict(input=Conv2d(in_chans, width, 7))
        previous = width
        for i in range(num_pools + 1):
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for j in range(1, blocks_per_group + 1):
                group[f"block_{j}"] = Block(
                    previous, width * 2**i, kernel_sizes=(3, 3, 3, 1), gain=gain
                )
                previous = width * 2**i
            if i < num_pools:
                group["pool"] = nn.MaxPool2d(kernel_size=2)
            blocks[f"group_{i + 1}"] = nn.Sequential(group)
        blocks["output"] = nn.Sequential(
            OrderedDict(relu=nn.ReLU(), conv=Conv2d(previous, vocab_size, 1))
        )
        self.blocks = nn.Sequential(blocks)

    @property
    def factor(self) -> int:
        """Down-sampling: pixels a side of one token."""
        return 2**self.num_pools

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


@torch.no_grad()
def initialize(module: nn.Module) -> None:
    """Draws every convolution anew from torch's generator: normal with std 1/sqrt(fan in), bias 0."""
    for part in module.modules():
        if isinstance(part, Conv2d):
            part.w.normal_(std=part.w[0].numel() ** -0.5)
            part.b.zero_()
