"""Tokens of a VQ-VAE that is fitted with a perceptual term: PeCo (Dong et al. 2021, arXiv 2111.12710, section 3.2).

An encoder, a codebook and a decoder are fitted together, so that the decoded image is near to the image in pixels
(absolute difference) and in the layer-normalised features of all blocks of a frozen network (squared difference).
The target is the code's number.

Deliberate differences: no adversarial term; the networks are those of `dvae`, the codes unit vectors that begin again
when hardly used; features of all blocks count alike. The frozen network is that of `feature` (PeCo: a self-supervised
ViT-B): without one it is random, which still compares patches by more than pixels.

Legend: B batch, C channels, H W image, L patches (h x w grid), c width of a code.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_bench.config.teacher_params import VqPerceptualParams
from mim_bench.target import to_rgb
from mim_bench.targets.tokenizer.decoder import Decoder
from mim_bench.targets.tokenizer.lanczos import resize
from mim_bench.targets.tokenizer.vector_quantized import VqTarget


class VqPerceptualTarget(VqTarget):
    """The code of each patch, (B, L) int64."""

    Params = VqPerceptualParams
    version = VqPerceptualParams.version

    def make_decoder(self) -> Decoder:
        """(B, c, h, w) -> (B, C, h*f, w*f)."""
        return Decoder(
            width=self.params.width,
            blocks_per_group=self.params.blocks_per_group,
            vocab_size=self.params.code_width,
            out_chans=self.geometry.in_chans,
            num_pools=self.num_pools,
            gain=1.0,
        )

    def distance(self, codes: Tensor, images: Tensor) -> Tensor:
        """Codes (B, c, h, w) and images (B, C, H, W) -> difference of pixels, plus that of features by its weight."""
        decoded = self._image(self.decoded(codes))
        pixels = (decoded - images).abs().mean()
        with torch.no_grad():
            features = self._features(images)
        decoded_features = self._features(decoded)
        squares = [F.mse_loss(a, b) for a, b in zip(decoded_features, features, strict=True)]
        return pixels + self.params.perceptual_weight * torch.stack(squares).mean()

    def _image(self, decoded: Tensor) -> Tensor:
        """Output of the decoder -> (B, C, H, W) in [0, 1]."""
        return resize(torch.sigmoid(decoded), self.geometry.image_size)

    def _features(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) in [0, 1] -> (B, L, D) of each block, layer-normalised."""
        layers: Any = self.teacher.forward_intermediates(
            self.geometry.normalize(images), output_fmt="NLC", intermediates_only=True
        )
        return [F.layer_norm(layer, layer.shape[-1:]) for layer in layers]

    @torch.no_grad()
    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L) -> (B, 3, H, W): the codes decoded."""
        return to_rgb(self._image(self.decoded(self.codes(values))))
