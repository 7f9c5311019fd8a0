"""Features of a teacher that follows the student: data2vec (Baevski et al. 2022, arXiv 2202.03555, section 3).

The teacher is an exponential moving average of the student's encoder and sees the whole image. The target of a
patch is the mean of the layer-normalised outputs of the teacher's top K blocks at that patch; the loss is
smooth L1; the rate of the average rises linearly over the first updates (equations 1 and 2).

Deliberate differences: the student is this project's model, MAE's shape by default, so that closed tables
compare targets alone; position tables are averaged along, where data2vec copies them.

Legend: B batch, C channels, H W image, L patches, D width of the encoder = dim.
"""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim_bench.config.follower_params import BootstrapParams, EmaFeatureParams
from mim_bench.errors import UserError
from mim_bench.target import Target, TargetContext
from mim_bench.targets.feature_picture import feature_picture
from mim_bench.targets.moving_average import follow


class EmaFeatureTarget(Target):
    """Layer-normalised features of the student's moving average, (B, L, D) float32."""

    Params = EmaFeatureParams
    version = EmaFeatureParams.version
    follows_student = True
    precision = "model"
    picture_uses_ground_truth = True

    def __init__(self, params: EmaFeatureParams | BootstrapParams, context: TargetContext) -> None:
        super().__init__(params, context)
        if context.model is None:
            raise UserError("the teacher follows a student, whose model must be given")
        self.dim = context.model.embed_dim
        self.num_blocks = min(params.num_blocks, context.model.depth)
        self.teacher: nn.Module | None = None

    def begin(self, student: nn.Module) -> None:
        """Copies the student's encoder."""
        self.teacher = copy.deepcopy(cast(Any, student).encoder).requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Batch of images, shape (B, C, H, W), float in [0, 1] -> (B, L, D) float32."""
        if self.teacher is None:
            raise RuntimeError(f"{type(self).__name__}: begin comes before forward")
        teacher = cast(Any, self.teacher).eval()
        layers = teacher.forward_intermediates(
            self.geometry.normalize(images),
            indices=self.num_blocks, output_fmt="NLC", intermediates_only=True,
        )  # fmt: skip
        return torch.stack([F.layer_norm(layer.float(), (self.dim,)) for layer in layers]).mean(0)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, N, D) -> (B, N) float32, the mean over D."""
        beta = self.params.beta
        losses = F.smooth_l1_loss(prediction.float(), target, beta=beta, reduction="none")
        return losses.mean(dim=-1)

    @torch.no_grad()
    def after_step(self, student: nn.Module, step: int, num_steps: int) -> None:
        """Moves the teacher's weights towards the student's by 1 - tau."""
        params = self.params
        progress = min(1.0, step / max(1.0, params.tau_fraction * num_steps))
        tau = params.tau_start + (params.tau_end - params.tau_start) * progress
        follow(cast(nn.Module, self.teacher), cast(Any, student).encoder, tau)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, D) -> (B, 3, H, W): principal components of the true features as red, green and blue."""
        return feature_picture(values, self(images), self.geometry)
