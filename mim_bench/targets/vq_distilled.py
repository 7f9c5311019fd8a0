"""Tokens from which a frozen teacher's features are decoded: BEiT v2 (Peng et al. 2022, arXiv 2208.06366, section 2.2).

An encoder, a codebook of unit vectors and a decoder are fitted together, so that the decoded codes have the direction
of the teacher's layer-normalised features at each patch (cosine loss, equation 2). The target is the code's number.

Deliberate differences: encoder and decoder are the small convolutional ones of `dvae`, where BEiT v2 has a ViT-B and
three of its blocks; codes that are hardly used begin again, and are not started by k-means; no patch-aggregation head
in pre-training. The teacher is that of `feature` (BEiT v2: CLIP or DINO): without one it is random.

Legend: B batch, C channels, H W image, L patches (h x w grid), c width of a code, D width of the teacher.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_bench.config.teacher_params import VqDistilledParams
from mim_bench.targets.feature_picture import feature_picture
from mim_bench.targets.tokenizer.decoder import Decoder
from mim_bench.targets.tokenizer.vector_quantized import VqTarget


class VqDistilledTarget(VqTarget):
    """The code of each patch, (B, L) int64."""

    Params = VqDistilledParams
    version = VqDistilledParams.version
    picture_uses_ground_truth = True

    def make_decoder(self) -> Decoder:
        """(B, c, h, w) -> (B, D, h, w)."""
        return Decoder(
            width=self.params.width * 2**self.num_pools,
            blocks_per_group=self.params.blocks_per_group,
            vocab_size=self.params.code_width,
            out_chans=self.teacher.embed_dim,
            num_pools=0,
            gain=1.0,
        )

    def distance(self, codes: Tensor, images: Tensor) -> Tensor:
        """Codes (B, c, h, w) and images (B, C, H, W) -> mean of 1 - cosine over patches."""
        with torch.no_grad():
            layers: Any = self.teacher.forward_intermediates(
                self.geometry.normalize(images), indices=1, intermediates_only=True
            )  # (B, D, h, w)
            expected = F.layer_norm(layers[0].movedim(1, -1), layers[0].shape[1:2])
        decoded = self.decoded(codes).movedim(1, -1)
        return 1 - F.cosine_similarity(decoded, expected, dim=-1).mean()

    @torch.no_grad()
    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L) -> (B, 3, H, W): principal components of the decoded features as red, green and blue."""
        decoded_prediction, decoded_target = (
            self.decoded(self.codes(maps)).flatten(2).mT for maps in (values, self(images))
        )
        return feature_picture(decoded_prediction, decoded_target, self.geometry)
