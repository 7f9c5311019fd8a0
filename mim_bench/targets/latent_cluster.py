"""Soft clusters of a teacher's patch features: CAPI (Darcet et al. 2025, arXiv 2502.08769, section 3.1).

The teacher is an exponential moving average of the student's encoder and sees the whole image. A patch's score with
a prototype is the cosine of its layer-normalised feature, less the features' moving average, over a temperature.
Sinkhorn's algorithm makes every prototype equally frequent at every single position of the grid (equation 4): so
neither one prototype for all nor one for each position, which could be predicted blindly, is a solution.

Deliberate differences:
- A value must not depend on the rest of its batch, which Sinkhorn's does. Its columns' scalings are kept from step to
  step instead, as one bias a position and prototype: each step takes a part of one iteration of Sinkhorn's on its
  batch, whose fixed point is the same equal use.
- CAPI learns prototypes by a loss and an optimiser of their own. Here they are those of spherical k-means, the moving
  average of the features assigned to them: no second learning rate, and they can only lie where features are.
- The prediction's head and loss are those that all soft targets share.

Legend: B batch, C channels, H W image, L patches, D width of the encoder, K prototypes = dim.
"""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim_bench import rng
from mim_bench.config.follower_params import LatentClusterParams
from mim_bench.errors import UserError
from mim_bench.target import TargetContext
from mim_bench.targets.feature_picture import feature_picture
from mim_bench.targets.moving_average import cosine, exact, follow, sum_over_ranks
from mim_bench.targets.soft_target import SoftTarget

_FLOOR = 0.1
"""Floor on a prototype's use, as a fraction of an equal share: an unused one is not made infinitely likelier."""


class LatentClusterTarget(SoftTarget):
    """The teacher's distribution over prototypes, (B, L, K) float32, on average uniform at each position."""

    Params = LatentClusterParams
    version = LatentClusterParams.version
    follows_student = True
    precision = "model"
    picture_uses_ground_truth = True

    prototypes: Tensor
    center: Tensor
    bias: Tensor

    def __init__(self, params: LatentClusterParams, context: TargetContext) -> None:
        super().__init__(params, context)
        if context.model is None:
            raise UserError("latent_cluster follows a student, whose model must be given")
        self.dim, width = params.num_prototypes, context.model.embed_dim
        generator = torch.Generator().manual_seed(rng.integer(seed=context.seed, stream="clusters"))
        random_rows = torch.randn(self.dim, width, generator=generator)
        self.register_buffer("prototypes", F.normalize(random_rows, dim=1))
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("bias", torch.zeros(self.geometry.num_patches, self.dim))
        self.teacher: nn.Module | None = None
        self._sums: list[Tensor] | None = None

    def begin(self, student: nn.Module) -> None:
        """Copies the student's encoder."""
        self.teacher = copy.deepcopy(cast(Any, student).encoder).requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Batch of images, shape (B, C, H, W), float in [0, 1] -> (B, L, K) float32, each patch's sum is 1."""
        features = self._features(images)
        units = F.normalize(features - self.center, dim=-1)
        with exact(units):
            scores = units @ self.prototypes.T / self.params.temperature
            values = (scores + self.bias).softmax(-1)
            if self.training:
                self._remember(values, units, features)
        return values

    def _features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, D) float32, layer-normalised outputs of the last block."""
        if self.teacher is None:
            raise RuntimeError("latent_cluster: begin comes before forward")
        layers: Any = cast(Any, self.teacher).eval().forward_intermediates(
            self.geometry.normalize(images), indices=1, output_fmt="NLC", intermediates_only=True
        )  # fmt: skip
        return F.layer_norm(layers[0].float(), layers[0].shape[-1:])

    def _remember(self, values: Tensor, units: Tensor, features: Tensor) -> None:
        """Sums over images for `after_step`: of assignments, of features by prototype, of all, and how many."""
        sums = [
            values.sum(0),
            values.flatten(0, 1).T @ units.flatten(0, 1),
            features.mean(1).sum(0),
            torch.full((1,), float(len(values)), device=values.device),
        ]
        before = self._sums or [torch.zeros_like(sum_) for sum_ in sums]
        self._sums = [a + b for a, b in zip(before, sums, strict=True)]

    @torch.no_grad()
    def after_step(self, student: nn.Module, step: int, num_steps: int) -> None:
        """Moves the teacher, then prototypes, centre and biases by what the step's images said."""
        params = self.params
        tau = cosine(params.tau_start, params.tau_end, step / num_steps)
        follow(cast(nn.Module, self.teacher), cast(Any, student).encoder, tau)
        if self._sums is None:
            return
        assigned, by_prototype, total, num = (sum_over_ranks(sum_) for sum_ in self._sums)
        self._sums = None
        updated = self.prototypes.lerp(F.normalize(by_prototype, dim=1), 1 - params.momentum)
        self.prototypes.copy_(F.normalize(updated, dim=1))
        self.center.lerp_(total / num, 1 - params.momentum)
        relative_use = self.dim * assigned / num  # (L, K), 1 where equal
        self.bias.sub_(params.sinkhorn_rate * ((relative_use + _FLOOR) / (1 + _FLOOR)).log())
        self.bias.sub_(self.bias.mean(1, keepdim=True))

    @torch.no_grad()
    def feature(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) float32, the mean over patches."""
        return self(images).mean(1)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, K) -> (B, 3, H, W): principal components of mean prototypes as red, green and blue."""
        return feature_picture(
            values @ self.prototypes, self(images) @ self.prototypes, self.geometry
        )
