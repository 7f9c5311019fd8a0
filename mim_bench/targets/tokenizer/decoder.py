"""The decoder of a discrete VAE, the mirror of `encoder.Encoder` (Ramesh et al. 2021, arXiv 2102.12092).

Written after the paper's description: a 1x1 convolution on the one-hot (or relaxed) tokens, groups of
residual blocks at widths 8, 4, 2 and 1 times `width` with nearest-neighbour up-sampling between them,
a 1x1 convolution to two numbers a value: the mean and the log scale of the pixel likelihood.
Deliberate difference: no claim to load the published decoder's weights.

Legend: B batch, C channels, h w token grid, V vocabulary, f = 2 ** num_pools.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim_bench.targets.tokenizer.encoder import Block, Conv2d, initialize, published_gain


class Decoder(nn.Module):
    """(B, V, h, w) token probabilities -> mean and log scale, each (B, C, h*f, w*f)."""

    def __init__(
        self,
        *,
        width: int,
        blocks_per_group: int,
        vocab_size: int,
        out_chans: int,
        num_pools: int,
        gain: float | None = None,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.out_chans = out_chans
        if gain is None:
            gain = published_gain(num_pools, blocks_per_group)
        previous = width * 2**num_pools
        blocks: OrderedDict[str, nn.Module] = OrderedDict(input=Conv2d(vocab_size, previous, 1))
        for i in range(num_pools, -1, -1):
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for j in range(1, blocks_per_group + 1):
                group[f"block_{j}"] = Block(
                    previous, width * 2**i, kernel_sizes=(1, 3, 3, 3), gain=gain
                )
                previous = width * 2**i
            if i > 0:
                group["upsample"] = nn.Upsample(scale_factor=2, mode="nearest")
            blocks[f"group_{num_pools - i + 1}"] = nn.Sequential(group)
        blocks["output"] = nn.Sequential(
            OrderedDict(relu=nn.ReLU(), conv=Conv2d(previous, 2 * out_chans, 1))
        )
        self.blocks = nn.Sequential(blocks)

    def forward(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = self.blocks(probabilities).chunk(2, dim=1)
        return mean, log_scale

    def from_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w) token ids -> as `forward`."""
        one_hot = F.one_hot(tokens, self.vocab_size).movedim(-1, 1).float()
        return self(one_hot)


@torch.no_grad()
def initialize_decoder(decoder: Decoder) -> None:
    """Initializes as `initialize` does, but each token starts as a vector of unit variance: just one input is not 0."""
    initialize(decoder)
    for name, parameter in decoder.blocks.named_parameters():
        if name == "input.w":
            parameter.normal_()
