"""Colour jitter: brightness, contrast and saturation of an image scaled by random factors.

MAE's Table 1e asks whether it helps; BEiT pre-trains with 0.4. The three operations are torchvision's, in
random order as in its `ColorJitter`; factors and order are a function of (seed, epoch, sample index).
"""

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional

from mim_bench import rng
from mim_bench.data.resample import Image8
from mim_bench.errors import UserError

_OPERATIONS = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
)


class ColorJitter:
    """Changes one 8-bit image; a `loader.Hook`."""

    def __init__(self, strength: float, *, seed: int, epoch: int) -> None:
        """Each factor is uniform in 1 ± `strength`."""
        self.strength, self.seed, self.epoch = strength, seed, epoch

    def __call__(self, image: Image8, index: int) -> Image8:
        """(h, w, C) uint8 -> the same shape; grey images keep their saturation."""
        num_channels = image.shape[2]
        if num_channels not in (1, 3):
            raise UserError(
                f"augment.color_jitter={self.strength}: works on 1 or 3 channels, these images have "
                f"{num_channels}; use augment.color_jitter=0"
            )
        draws = rng.uniform(
            torch.tensor([index]), 6, seed=self.seed, epoch=self.epoch, stream="color jitter"
        )[0]
        factors = (1 + self.strength * (2 * draws[:3] - 1)).tolist()
        changed = Image.fromarray(image[:, :, 0] if num_channels == 1 else image)
        for operation in draws[3:].argsort().tolist():
            changed = _OPERATIONS[operation](changed, factors[operation])
        array = np.asarray(changed)
        return array[:, :, None] if num_channels == 1 else array
