"""Edges and texture of each pixel: targets that openmixup lists next to HOG (Sobel, Canny, Laplacian, LBP).

All work on 8-bit grey levels, the mean over channels, whose sums and differences are exact on every device.

- `sobel`: magnitude of the gradient;
- `laplacian`: the sum of the four neighbours minus four times the pixel;
- `lbp`: for each of the eight neighbours, whether it is at least as bright as the pixel (Ojala et al. 2002);
- `canny`: whether the pixel is on one of Canny's edges (`mim_bench.targets.canny`).

Legend: B batch, L patches, p patch side, N numbers a pixel: 1, of `lbp` 8.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mim_bench.config.target_params import EdgesParams
from mim_bench.errors import UserError
from mim_bench.target import Target, TargetContext
from mim_bench.targets.canny import canny
from mim_bench.targets.hog import sobel
from mim_bench.targets.regression_loss import regression_loss

_AROUND = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
"""Corners of the shifted image in the padded one, clockwise from the upper left neighbour."""
_LARGEST = {"sobel": 4 * 255 * 2**0.5, "laplacian": 4 * 255.0, "lbp": 1.0, "canny": 1.0}


class EdgesTarget(Target):
    """Edge or texture values of each pixel, (B, L, p*p*N) float32, in units of the greatest possible."""

    Params = EdgesParams
    version = EdgesParams.version

    def __init__(self, params: EdgesParams, context: TargetContext) -> None:
        super().__init__(params, context)
        if min(self.geometry.image_size) < 2:
            raise UserError("edges needs images of at least 2 x 2 pixels")
        self.num_values = 8 if params.operator == "lbp" else 1
        self.dim = self.geometry.patch_size**2 * self.num_values

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) floats in [0, 1] -> (B, L, p*p*N) float32."""
        levels = (images.float() * 255).round()
        grey = levels.sum(1, keepdim=True)  # whole numbers; divided at the end
        values = self._values(grey, levels.shape[1]) / _LARGEST[self.params.operator]
        p = self.geometry.patch_size
        return rearrange(values, "b n (h p) (w q) -> b (h w) (p q n)", p=p, q=p)

    def _values(self, grey: Tensor, channels: int) -> Tensor:
        """Sums of levels over channels (B, 1, H, W) -> (B, N, H, W)."""
        if self.params.operator == "sobel":
            gx, gy = sobel(grey)
            return (gx * gx + gy * gy).double().sqrt().float() / channels
        if self.params.operator == "canny":
            return canny(grey.double() / (255 * channels)).float()
        padded = F.pad(grey, (1, 1, 1, 1), mode="reflect")
        height, width = grey.shape[2:]
        around = [padded[..., y : y + height, x : x + width] for y, x in _AROUND]
        if self.params.operator == "laplacian":
            return (sum(around[1::2], torch.zeros_like(grey)) - 4 * grey) / channels
        return torch.cat([(neighbour >= grey).float() for neighbour in around], dim=1)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, N, dim) -> (B, N) float32."""
        return regression_loss(self.params.loss, prediction, target)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, dim) -> (B, 3, H, W) in [0, 1]: magnitudes, drawn up to half of the greatest possible; of `lbp` the
        share of neighbours that are as bright; edges white."""
        (rows, columns), p = self.geometry.grid, self.geometry.patch_size
        edges = rearrange(
            values.float(), "b (h w) (p q n) -> b n (h p) (w q)", h=rows, w=columns, p=p, q=p
        ).mean(1, keepdim=True)
        if self.params.operator == "laplacian":
            edges = 0.5 + edges
        elif self.params.operator == "sobel":
            edges = 2 * edges
        return edges.clamp(0, 1).expand(-1, 3, -1, -1)
