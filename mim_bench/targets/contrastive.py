"""A reference that predicts nothing hidden: contrastive learning of two views, MoCo v3 (Chen et al. 2021, arXiv
2104.02057, section 3 and algorithm 1).

Two crops of an image; the student's class token of one is to be nearer to the momentum teacher's of the other than to
those of every other image of the batch (InfoNCE), and the other way round. The student is the masked model with
nothing hidden, its decoder and head in the place of projector and predictor; the teacher is its moving average.

Deliberate differences: the views are the run's own crops and flips, where MoCo v3 changes colours, blurs and
solarises too; the teacher has all layers of the student, where MoCo v3's has no predictor; no batch normalisation;
the patch projection is trained. Where gradients are accumulated, the other images are those of the batch's part.

It has no value for a patch: those that `forward` returns, the teacher's tokens, are for pictures. A step costs two
views, unmasked, which its FLOPs count.

Legend: B batch, C channels, H W image, L patches, D width of an embedding = dim.
"""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim_bench.config.follower_params import ContrastiveParams
from mim_bench.target import Target, TargetContext
from mim_bench.targets.feature_picture import feature_picture
from mim_bench.targets.moving_average import cosine, follow, gather_over_ranks


class ContrastiveTarget(Target):
    """Embeddings of the class token by the student's moving average, of two views."""

    Params = ContrastiveParams
    version = ContrastiveParams.version
    follows_student = True
    num_views = 2
    precision = "model"
    picture_uses_ground_truth = True

    def __init__(self, params: ContrastiveParams, context: TargetContext) -> None:
        super().__init__(params, context)
        self.dim = params.width
        self.teacher: nn.Module | None = None

    def begin(self, student: nn.Module) -> None:
        """Hides nothing from the student from here on, and copies it."""
        cast(Any, student).num_visible = self.geometry.num_patches
        self.teacher = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Batch of images, shape (B, C, H, W), float in [0, 1] -> (B, L, D) float32 of length 1, for pictures."""
        return self._embeddings(images)[:, 1:]

    @torch.no_grad()
    def image_values(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) float32 of length 1, of the class token."""
        return self._embeddings(images)[:, 0]

    def _embeddings(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + L, D), the class token's first."""
        if self.teacher is None:
            raise RuntimeError("contrastive: begin comes before forward")
        order = torch.arange(self.geometry.num_patches, device=images.device)
        teacher = cast(Any, self.teacher).eval()
        prediction = teacher.predict(images, order.expand(len(images), -1), class_token=True)
        return F.normalize(prediction.float(), dim=-1)

    def image_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Head output of one view and embeddings of another (B, D) -> (B,) cross-entropy of the right image."""
        all_targets, first = gather_over_ranks(target)
        with torch.autocast(prediction.device.type, enabled=False):
            scores = (
                F.normalize(prediction.float(), dim=-1) @ all_targets.T / self.params.temperature
            )
        positives = first + torch.arange(len(scores), device=scores.device)
        return F.cross_entropy(scores, positives, reduction="none")

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, N, D) -> (B, N), 1 - cosine: of patches, which are not trained."""
        return 1 - F.cosine_similarity(prediction.float(), target, dim=-1)

    @torch.no_grad()
    def after_step(self, student: nn.Module, step: int, num_steps: int) -> None:
        """Moves the teacher's weights towards the student's."""
        tau = cosine(self.params.tau_start, self.params.tau_end, step / num_steps)
        follow(cast(nn.Module, self.teacher), student, tau)

    @torch.no_grad()
    def feature(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) float32, of the class token."""
        return self.image_values(images)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, D) -> (B, 3, H, W): principal components of the teacher's tokens as red, green and blue."""
        return feature_picture(values, self(images), self.geometry)
