"""Tokens of an online tokenizer that follows the student: iBOT (Zhou et al. 2022, arXiv 2111.07832, equations 2 and 3).

The teacher is an exponential moving average of the student's whole model, head included, and sees the whole image: the
masked model with nothing hidden. So the tokenizer's prototypes are the moving average of the rows of the student's
head, which is the one that every target has. Its scores are the cosines of a patch's last token with the prototypes
(iBOT's normalised last layer), less their moving average over all patches (centring), over a low temperature
(sharpening). Centring alone would end in equal scores, sharpening alone in one prototype for all.

Deliberate differences: the head is one linear layer on the decoder's tokens, where iBOT has three layers on the
encoder's; the student's scores are not normalised, which leaves it its own temperature; one view of an image, so
`class_weight` compares class tokens of the masked and the whole image, where iBOT compares two crops; one centre for
patches and one for class tokens, as iBOT. Without class tokens iBOT's features are poor, by its Table 9.

Legend: B batch, C channels, H W image, L patches, K prototypes = dim.
"""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim_bench.config.follower_params import EmaTokenParams
from mim_bench.target import TargetContext
from mim_bench.targets.feature_picture import feature_picture
from mim_bench.targets.moving_average import cosine, exact, follow, sum_over_ranks
from mim_bench.targets.soft_target import SoftTarget


class EmaTokenTarget(SoftTarget):
    """The teacher's distribution over prototypes, (B, L, K) float32."""

    Params = EmaTokenParams
    version = EmaTokenParams.version
    follows_student = True
    precision = "model"
    picture_uses_ground_truth = True

    centers: Tensor
    temperature: Tensor

    def __init__(self, params: EmaTokenParams, context: TargetContext) -> None:
        super().__init__(params, context)
        self.dim = params.num_prototypes
        self.teacher: nn.Module | None = None
        self.register_buffer("centers", torch.zeros(2, self.dim))  # of class tokens, of patches
        self.register_buffer("temperature", torch.tensor(params.temperature_start))
        self._sums: Tensor | None = None

    @property
    def has_image_loss(self) -> bool:
        return self.params.class_weight > 0

    def begin(self, student: nn.Module) -> None:
        """Copies the student, head included; nothing is hidden from the copy."""
        teacher: Any = copy.deepcopy(student).requires_grad_(False)
        teacher.num_visible = self.geometry.num_patches
        head = teacher.decoder_pred
        teacher.decoder_pred = _CosineHead(head.in_features, head.out_features)
        teacher.decoder_pred.load_state_dict(head.state_dict())
        self.teacher = teacher.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Batch of images, shape (B, C, H, W), float in [0, 1] -> (B, L, K) float32, each patch's sum is 1."""
        scores = self._scores(images)
        if self.training:  # what the centres will follow
            sums = torch.cat([scores[:, :1].sum(0), scores[:, 1:].sum((0, 1))[None]])
            counts = torch.tensor([[len(images)], [scores[:, 1:, 0].numel()]], device=sums.device)
            sums = torch.cat([sums, counts], dim=1)
            self._sums = sums if self._sums is None else self._sums + sums
        return self._sharpened(scores[:, 1:], self.centers[1])

    @torch.no_grad()
    def image_values(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) float32, of the class token."""
        return self._sharpened(self._scores(images)[:, 0], self.centers[0])

    def image_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Scores and probabilities of the class token (B, K) -> (B,), times `class_weight`."""
        return self.params.class_weight * self.loss(prediction, target)

    def _scores(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> cosines (B, 1 + L, K), the class token's first."""
        if self.teacher is None:
            raise RuntimeError("ema_token: begin comes before forward")
        order = torch.arange(self.geometry.num_patches, device=images.device)
        teacher = cast(Any, self.teacher).eval()
        return teacher.predict(images, order.expand(len(images), -1), class_token=True)

    def _sharpened(self, scores: Tensor, center: Tensor) -> Tensor:
        return ((scores - center) / self.temperature).softmax(-1)

    @torch.no_grad()
    def after_step(self, student: nn.Module, step: int, num_steps: int) -> None:
        """Moves the teacher and its centres, and raises the temperature."""
        params, progress = self.params, step / num_steps
        if self._sums is not None:
            sums = sum_over_ranks(self._sums)
            self.centers.lerp_(sums[:, :-1] / sums[:, -1:], 1 - params.center_momentum)
            self._sums = None
        follow(
            cast(nn.Module, self.teacher),
            student,
            cosine(params.tau_start, params.tau_end, progress),
        )
        warm = min(1.0, progress / params.temperature_fraction)
        low, high = params.temperature_start, params.temperature_end
        self.temperature.fill_(low + (high - low) * warm)

    @torch.no_grad()
    def feature(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) float32, the mean over patches."""
        return self(images).mean(1)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, K) -> (B, 3, H, W): principal components of mean prototypes as red, green and blue."""
        prototypes = F.normalize(cast(Any, self.teacher).decoder_pred.weight, dim=-1)
        return feature_picture(values @ prototypes, self(images) @ prototypes, self.geometry)


class _CosineHead(nn.Linear):
    """Cosines of tokens with prototypes, the rows of the weight; the bias plays no part."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., D) -> (..., K) float32."""
        with exact(input):
            return F.linear(F.normalize(input.float(), dim=-1), F.normalize(self.weight, dim=-1))
