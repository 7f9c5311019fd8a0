"""A target: what is predicted for each patch. The base class that every recipe's class extends.

The loop knows nothing of what a target is made of. It calls `forward` on the clean images, hands the
head's output and the values at the hidden patches to `loss`, and averages itself.

Legend: B batch, C channels, H W image, L patches (row-major grid), dim width of the prediction head.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from mim_bench.errors import UserError
from mim_bench.lazy import import_object
from mim_bench.schema import Frozen


@functools.lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(1, C, 1, 1), made once: a copy to a GPU would make the host wait in every step."""
    with torch.inference_mode(False):  # whoever asks first, everybody can use it
        return torch.tensor(values, device=device, dtype=dtype).view(1, -1, 1, 1)


def _constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    return _on_device(values, like.device, like.dtype)


@dataclass(frozen=True)
class Geometry:
    """The images and patches a target is built for."""

    image_size: tuple[int, int]
    """Height and width in pixels, each a multiple of `patch_size`."""
    patch_size: int
    """Side of a square patch in pixels."""
    in_chans: int
    """Channels of an image."""
    mean: tuple[float, ...]
    """Per channel, of images in [0, 1]."""
    std: tuple[float, ...]
    """Per channel, of images in [0, 1]."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def normalize(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same, normalised by `mean` and `std`."""
        return (images - _constant(self.mean, images)) / _constant(self.std, images)

    def denormalize(self, images: Tensor) -> Tensor:
        """The inverse of `normalize`; not clamped."""
        return images * _constant(self.std, images) + _constant(self.mean, images)

    def patchify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, p*p*C), inside a patch row, column, channel (MAE's order)."""
        p = self.patch_size
        return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)

    def normalized_patches(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, L, p*p*C) float32, of the normalised image."""
        return self.patchify(self.normalize(images.float()))

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, L, p*p*C) -> (B, C, H, W), the inverse of `patchify`."""
        p = self.patch_size
        return rearrange(
            patches, "b (h w) (p q c) -> b c (h p) (w q)", h=self.grid[0], p=p, q=p, c=self.in_chans
        )


class StudentShape(Protocol):
    """The part of a model's config that targets may need."""

    @property
    def embed_dim(self) -> int:
        """Width of the encoder."""
        ...

    @property
    def depth(self) -> int:
        """Blocks of the encoder."""
        ...

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        ...


@dataclass(frozen=True)
class TargetContext:
    """Context that a target is built for: geometry, the student's sizes and the seed."""

    geometry: Geometry
    model: StudentShape | None = None
    """Config of the student, the model that is pre-trained (`mim_bench.config.run.ModelConfig`)."""
    seed: int = 0
    """Seed of the run."""


class TrainingImages(Protocol):
    """Training images that a target is fitted on: each pass yields every training image once, freshly cropped."""

    num_images: int

    def __iter__(self) -> Iterator[Tensor]:
        """Batches of (B, C, H, W) floats in [0, 1] on the target's device."""
        ...


class Target(nn.Module):
    """Reconstruction target: what is predicted for each patch of an image in [0, 1]."""

    Params: ClassVar[type[Frozen]] = Frozen
    """The parameters of this target, with their defaults; a recipe may set these and nothing else."""
    version: ClassVar[int] = 1
    """Raised by every change that can move a score; older records are then marked stale."""
    follows_student: ClassVar[bool] = False
    """True if `begin` and `after_step` change the target's own state, which is then saved with the run."""
    precision: ClassVar[Literal["float32", "model"]] = "float32"
    """Precision of `forward`: exact float32 whatever the model runs in, or that of the model (a teacher)."""
    picture_uses_ground_truth: ClassVar[bool] = False
    """True if `picture` needs statistics of the true image to draw a prediction; the picture says so."""
    num_views: ClassVar[int] = 1
    """Crops of an image in a step, each of its own random stream. With more than one nothing is hidden: every view's
    class token is trained against the values of the others, by `image_values` and `image_loss`."""
    are_probabilities: ClassVar[bool] = False
    """True if `forward` returns soft targets, for which the head has logits."""
    dim: int
    """Width of the prediction head."""

    def __init__(self, params: Any, context: TargetContext) -> None:
        super().__init__()
        self.dim = 0  # set by the subclass
        self.params = params
        self.context = context
        self.geometry = context.geometry

    @property
    def needs_fit(self) -> bool:
        """True if `fit` must be called (or a fitted state loaded) before `forward`."""
        return False

    def fit(self, images: TrainingImages, *, seed: int) -> dict[str, float]:
        """Fits the target's state (its `state_dict`) to the training images.

        Returns values for the record, such as the use of a codebook. `seed` is the only source of
        randomness. Raises UserError when what came out is not worth using, and says what to change.
        """
        raise TypeError(f"{type(self).__name__} has nothing to fit")

    def skip_fit(self) -> None:
        """Takes the unfitted state for a fitted one: for timing, where the values do not matter."""

    def begin(self, student: nn.Module) -> None:
        """Called once with the student at its initial weights, before step 0; a teacher copies it here.

        Called too where a run is resumed or reopened, before the saved state is loaded.
        """

    def forward(self, images: Tensor) -> Tensor:
        """Batch of images, shape (B, C, H, W), float in [0, 1] -> the values to predict.

        (B, L, dim) regression values, (B, L) or (B, L, K) int64 class indices, or (B, L, dim) soft targets.
        In training mode, which it is in during steps alone, a target may keep what `after_step` learns from.
        """
        raise NotImplementedError

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Head output (B, N, dim) and values at the same N hidden patches -> (B, N), one loss a patch."""
        raise NotImplementedError

    @property
    def has_image_loss(self) -> bool:
        """True if the class token is trained too, by `image_values` and `image_loss`."""
        return False

    def image_values(self, images: Tensor) -> Tensor:
        """Batch of images, shape (B, C, H, W), float in [0, 1] -> what the class token is to predict, (B, ...)."""
        raise NotImplementedError

    def image_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Head output of the class token (B, dim) and its values -> (B,), added to the loss of the patches."""
        raise NotImplementedError

    def decode(self, prediction: Tensor) -> Tensor:
        """Head output (B, L, dim) -> values as `forward` returns them."""
        return prediction

    @torch.no_grad()
    def feature(self, images: Tensor) -> Tensor:
        """The target as a fixed feature of each image, (B, F) float32.

        By default all values in a row; of class indices the share of each class.
        """
        values = self(images)
        if values.is_floating_point():
            return values.flatten(1).float()
        num_classes = self.dim if values.ndim == 2 else self.dim // values.shape[2]
        index = values.flatten(1)
        share = torch.full(index.shape, 1 / index.shape[1], device=index.device)
        return share.new_zeros(len(index), num_classes).scatter_add_(1, index, share)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """Values as `forward` returns them -> (B, 3, k*H, k*W) in [0, 1], for people to look at.

        Optional: by default plain grey.

        `k` is a whole number, 1 unless the drawing needs more room than the image has (strokes).
        `images` (B, C, H, W) may be used only where `picture_uses_ground_truth` is True.
        """
        return torch.full_like(to_rgb(images), 0.5)

    def after_step(self, student: nn.Module, step: int, num_steps: int) -> None:
        """Called after each optimiser step; a teacher that follows the student updates itself here."""


def check_loss_shape(target: Target, loss: Tensor, shape: tuple[int, ...]) -> None:
    """Refuses a loss that is not one number a hidden patch, (B, N): it would broadcast."""
    if loss.shape != shape:
        raise UserError(
            f"{type(target).__name__}.loss returns shape {tuple(loss.shape)}; needed is one loss for each "
            f"hidden patch, {tuple(shape)}"
        )


def target_class(class_path: str) -> type[Target]:
    """The class behind `module:Class`, built-in or outside code alike.

    Raises:
        UserError: not of that form, not importable, or no Target.
    """
    module, _, name = class_path.partition(":")
    if not module or not name:
        raise UserError(f"target class '{class_path}' is not of the form 'module:Class'")
    imported = import_object(class_path, f"target class '{class_path}'")
    if not (isinstance(imported, type) and issubclass(imported, Target)):
        raise UserError(f"target class '{class_path}' is no mim_bench.target.Target")
    return imported


def to_rgb(images: Tensor) -> Tensor:
    """(B, C, H, W) of any channel count -> (B, 3, H, W) in [0, 1]: grey repeated, else the first three."""
    images = images.clamp(0, 1)
    if images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    if images.shape[1] == 2:
        return torch.cat([images, images[:, :1]], dim=1)
    return images[:, :3]
