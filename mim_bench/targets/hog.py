"""Histograms of oriented gradients: Wei et al., Masked Feature Prediction (MaskFeat, CVPR 2022), section 3.

After the official layer (facebookresearch/SlowFast, 287ec00, HOGLayerC): per channel, Sobel gradients with
reflected borders, orientation modulo 180 degrees in 9 bins of equal width without interpolation, the sum of
magnitudes per cell and bin, L2 over the bins of one cell and channel. Index of a value inside a patch:
((channel * bins + bin) * c + cell_y) * c + cell_x.

Deliberate differences:
- The input is the image's 8-bit levels, round(255 x), where the official model feeds mean-and-std-normalised
  floats. Mean and std cancel in the L2 step but for rounding, and that rounding decides the bin of every pixel
  without a horizontal gradient and the whole histogram of a flat cell, so that the official code disagrees
  with itself between convolution kernels. On levels every gradient is an exact integer.
- Gradients are sliced additions, not convolutions. Bins come from comparing gy / gx with the cotangents of the
  borders: for 9 bins equal to floor(atan2(gx, gy) / pi * 9) mod 9 in float64 for every gradient there is.
- Magnitudes are float64 rounded to multiples of 2^-32, whose sums are exact, so that the order of adding, and
  with it the device, the batch size and a compiler's rounding of square roots, cannot change them.
- Cells follow the patch: 2 x 2 a patch where they are at least 2 pixels wide, any channel count and grid.

Legend: B batch, C channels, H W image, L patches, c cells along a patch's side, n bins, s side of a drawn cell.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mim_bench.config.target_params import HogParams
from mim_bench.errors import UserError
from mim_bench.target import Target, TargetContext
from mim_bench.targets.regression_loss import regression_loss

_CELL_IN_PICTURE = 12
"""Pixels; smaller cells are drawn up to this size, for nine strokes cannot be told apart in 2 pixels."""
_STEP = 2.0**-32
"""Magnitudes are rounded to multiples of this; in float64 their sums over 1,400 pixels and more are exact."""


def sobel(levels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) -> gradients (gx, gy) of the same shape, exact for integers.

    gx is left minus right, gy upper minus lower, each weighted 1 2 1 across; borders are reflected.
    """
    padded = F.pad(levels, (1, 1, 1, 1), mode="reflect")
    across = padded[..., :-2] - padded[..., 2:]
    gx = torch.add(across[..., :-2, :] + across[..., 2:, :], across[..., 1:-1, :], alpha=2)
    vertical = padded[..., :-2, :] - padded[..., 2:, :]
    gy = torch.add(vertical[..., :-2] + vertical[..., 2:], vertical[..., 1:-1], alpha=2)
    return gx, gy


def gaussian(size: int) -> Tensor:
    """(size, size) float32 of sum 1: a Gaussian of std size // 2 about the window's centre."""
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weight = torch.exp(-0.5 * (offset / (size // 2)) ** 2)
    window = weight[:, None] * weight
    return (window / window.sum()).float()


class HogTarget(Target):
    """Histograms of oriented gradients of each patch's cells."""

    Params = HogParams
    version = HogParams.version

    def __init__(self, params: HogParams, context: TargetContext) -> None:
        super().__init__(params, context)
        geometry = context.geometry
        patch, (height, width) = geometry.patch_size, geometry.image_size
        self.cells = params.cells_per_side or (2 if patch % 2 == 0 and patch >= 4 else 1)
        """Cells along a patch's side."""
        if patch % self.cells:
            raise UserError(
                f"hog: cells_per_side {self.cells} does not divide the patch size {patch}"
            )
        if min(height, width) < 2:
            raise UserError("hog needs images of at least 2 x 2 pixels")
        self.cell_size = patch // self.cells
        """Side of a cell in pixels."""
        self.dim = geometry.in_chans * params.num_bins * self.cells**2

        borders = [-1 / math.tan(k * math.pi / params.num_bins) for k in range(1, params.num_bins)]
        self.register_buffer("_borders", torch.tensor(borders), persistent=False)
        self.register_buffer("_slot", self._slots(), persistent=False)
        self._borders: Tensor
        self._slot: Tensor

        self._window: Tensor | None
        self.register_buffer("_window", None, persistent=False)
        if size := params.gaussian_window:
            if size < 2 or height % size or width % size:
                raise UserError(
                    f"hog: gaussian_window {size} must be 0, or at least 2 and divide the image "
                    f"size {height} x {width}"
                )
            self._window = gaussian(size).tile(height // size, width // size)

    def _slots(self) -> Tensor:
        """(C*H*W,) int64: where bin 0 of each pixel's cell lies in an image's L*dim values."""
        patch, bins, c = self.geometry.patch_size, self.params.num_bins, self.cells
        y = torch.arange(self.geometry.image_size[0])[:, None]
        x = torch.arange(self.geometry.image_size[1])
        index = (y // patch) * self.geometry.grid[1] + x // patch
        cell = (y % patch // self.cell_size) * c + x % patch // self.cell_size
        channel = torch.arange(self.geometry.in_chans)[:, None, None]
        return (index * self.dim + channel * bins * c * c + cell).flatten()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L, dim) float32, each cell and channel of length 1 or 0."""
        levels = (images.float().contiguous() * 255).round_().clamp_(0, 255)
        if levels.device.type == "mps":  # has no float64
            return self.cpu().histogram(*sobel(levels.cpu())).to(images.device)
        return self.histogram(*sobel(levels))

    def bins(self, gx: Tensor, gy: Tensor) -> Tensor:
        """Two gradients of any shape -> int64 of that shape: floor(atan2(gx, gy) / pi * n) mod n.

        With the angle in (0, 180) degrees, -cot(angle) = -gy / gx grows with it; gx = 0 is angle 0.
        """
        rising = (-gy / gx).masked_fill_(gx == 0, -math.inf)
        return torch.bucketize(rising, self._borders, right=True)

    def histogram(self, gx: Tensor, gy: Tensor) -> Tensor:
        """Two integer-valued float32 gradients (B, C, H, W) -> (B, L, dim) float32."""
        magnitude = (gx * gx + gy * gy).double().sqrt_()
        if self._window is not None:
            magnitude = magnitude.mul_(self._window)
        magnitude = magnitude.mul_(1 / _STEP).round_().mul_(_STEP)
        index = self.bins(gx, gy).flatten(1).mul_(self.cells**2).add_(self._slot)

        num_images, num_patches = gx.shape[0], self.geometry.num_patches
        sums = magnitude.new_zeros(num_images, num_patches * self.dim)
        sums = sums.scatter_add_(1, index, magnitude.flatten(1))
        if not self.params.normalize:
            return (sums / 255).float().view(num_images, num_patches, self.dim)
        sums = sums.view(num_images, num_patches, -1, self.params.num_bins, self.cells**2)
        return (sums / _length(sums)).float().view(num_images, num_patches, self.dim)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, L, dim) -> (B, L) float32."""
        return regression_loss(self.params.loss, prediction, target)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, dim) -> (B, 3, k*H, k*W) in [0, 1]: a stroke per cell and bin, along the edge.

        Brightness is the value, the mean over channels; `k` is the largest that keeps cells within
        12 pixels. Unnormalised values are drawn relative to the largest of each image.
        """
        c, (rows, columns) = self.cells, self.geometry.grid
        bins = rearrange(
            values.float(),
            "b (gh gw) (ch n cy cx) -> b ch n (gh cy) (gw cx)",
            gh=rows, gw=columns, n=self.params.num_bins, cy=c, cx=c,
        ).mean(dim=1).clamp_min(0)  # fmt: skip
        if not self.params.normalize:
            bins = bins / bins.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        scale = max(1, _CELL_IN_PICTURE // self.cell_size)
        strokes = _strokes(self.params.num_bins, scale * self.cell_size).to(bins)
        canvas = bins.new_zeros(bins.shape[0], *bins.shape[2:], *strokes.shape[1:])
        for value, stroke in zip(bins.unbind(1), strokes, strict=True):
            canvas = torch.maximum(canvas, value[..., None, None] * stroke)
        image = rearrange(canvas, "b h w y x -> b 1 (h y) (w x)")
        return image.clamp(0, 1).expand(-1, 3, -1, -1)


def _length(sums: Tensor) -> Tensor:
    """(..., n, cells) -> (..., 1, cells): L2 over the bins, at least 1e-12, added in a fixed order."""
    first, *others = sums.square().unbind(-2)
    total = first.clone()
    for square in others:
        total += square
    return total.sqrt_().clamp_min_(1e-12).unsqueeze(-2)


def _strokes(num_bins: int, size: int) -> Tensor:
    """(n, s, s) in [0, 1]: an anti-aliased line through the cell's centre, along the bin's edges."""
    angle = (torch.arange(num_bins) + 0.5) * math.pi / num_bins
    offset = torch.arange(size) - (size - 1) / 2
    y, x = offset[:, None], offset
    # The gradient points to (sin, cos) in (x, y), so that this is the distance to the edge through the centre.
    away = (x * angle.sin()[:, None, None] + y * angle.cos()[:, None, None]).abs()
    along = (x * angle.cos()[:, None, None] - y * angle.sin()[:, None, None]).abs()
    half_width = max(0.6, size / 24)
    return (half_width + 0.5 - away).clamp(0, 1) * (size / 2 - along).clamp(0, 1)
