"""Pixels seen by frequency.

- `low_pass` (recipe `frequency`): PixMIM (Liu et al. 2023, arXiv 2303.02416), section 4.1: pixels without their high
  frequencies, an ideal low-pass filter of radius 40 at 224 pixels, the same share of any image.
- `spectrum` (recipe `fourier`): MFM (Xie et al. 2023, arXiv 2206.07706), equation 5 with gamma 1, and Ge2-AE: the
  discrete Fourier transform of each patch, amplitude and phase as real and imaginary part; the loss is the mean
  modulus of the difference over all frequencies. A squared error would be that of the pixels (Parseval).

Deliberate difference: MFM transforms the whole image; here each patch is transformed, so that the loss is one of hidden
patches as for every other target.

Legend: B batch, C channels, L patches, p patch side, q = p // 2 + 1 frequencies along the last axis.
"""

import torch
from torch import Tensor

from mim_bench.config.target_params import FrequencyParams
from mim_bench.target import Target, TargetContext, to_rgb
from mim_bench.targets.regression_loss import regression_loss


class FrequencyTarget(Target):
    """Low-passed pixels, or the spectrum of each patch, (B, L, dim) float32."""

    Params = FrequencyParams
    version = FrequencyParams.version

    def __init__(self, params: FrequencyParams, context: TargetContext) -> None:
        super().__init__(params, context)
        geometry = context.geometry
        patch, (height, width) = geometry.patch_size, geometry.image_size
        if params.kind == "low_pass":
            self.dim = patch**2 * geometry.in_chans
        else:
            self.dim = 2 * geometry.in_chans * patch * (patch // 2 + 1)
        vertical, horizontal = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
        kept = vertical[:, None].square() + horizontal.square() <= params.cutoff**2
        self.register_buffer("_kept", kept, persistent=False)
        # a real patch's other frequencies are the conjugates of these
        times = torch.full((patch // 2 + 1,), 2.0)
        times[0] = 1
        if patch % 2 == 0:
            times[-1] = 1
        self.register_buffer("_times", times / patch**2 / geometry.in_chans, persistent=False)
        self._kept: Tensor
        self._times: Tensor

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L, dim) float32, of the normalised image."""
        geometry = self.geometry
        normalized = geometry.normalize(images.float())
        if self.params.kind == "low_pass":
            spectrum = torch.fft.rfft2(normalized.double()) * self._kept
            return geometry.patchify(torch.fft.irfft2(spectrum, s=geometry.image_size).float())
        patches = geometry.patchify(normalized).unflatten(
            -1, (geometry.patch_size, geometry.patch_size, -1)
        )
        spectrum = torch.fft.rfft2(patches.movedim(-1, 2).double(), norm="ortho")  # (B, L, C, p, q)
        return torch.view_as_real(spectrum).flatten(2).float()

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, N, dim) -> (B, N) float32."""
        if self.params.kind == "low_pass":
            return regression_loss(self.params.loss, prediction, target)
        shape = (self.geometry.in_chans, self.geometry.patch_size, -1, 2)
        difference = (prediction.float() - target).unflatten(-1, shape)
        # the root has no gradient at 0
        modulus = (difference.square().sum(-1) + 1e-12).sqrt()
        return (modulus * self._times).sum((-3, -2, -1))

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, dim) -> (B, 3, H, W) in [0, 1]: the pixels with this spectrum."""
        geometry, patch = self.geometry, self.geometry.patch_size
        if self.params.kind == "spectrum":
            parts = values.float().unflatten(-1, (geometry.in_chans, patch, -1, 2)).contiguous()
            pixels = torch.fft.irfft2(torch.view_as_complex(parts), s=(patch, patch), norm="ortho")
            values = pixels.movedim(2, -1).flatten(2)
        return to_rgb(geometry.denormalize(geometry.unpatchify(values.float())))
