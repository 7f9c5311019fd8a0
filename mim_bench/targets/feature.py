"""Features of a frozen teacher, layer-normalised patch by patch.

- `random_feature`: a ViT of the student's shape at random weights, drawn from the run's seed: dBOT's control (Liu
  et al. 2022, arXiv 2209.03917, Table 1). How much of a feature target's worth is the teacher, how much the masks?
- `feature`: the encoder of a finished run (`feature.teacher=RUN_FOLDER`), or any ViT of timm's with a local file of
  weights (`feature.teacher=timm:NAME feature.weights=FILE`). MaskFeat's deep features (Wei et al. 2022, Table 2),
  SaGe, EVA and MILAN differ in the teacher alone. Nothing is downloaded; without a teacher it is `random_feature`.

The teacher sees the whole image; the target of a patch is the mean of the layer-normalised outputs of the teacher's top
blocks at that patch. The loss is one minus the cosine, as MaskFeat's for deep features, or smooth L1.

Legend: B batch, C channels, H W image, L patches, D width of the teacher = dim.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mim_bench.config.teacher_params import FeatureParams
from mim_bench.target import Target, TargetContext
from mim_bench.targets.feature_picture import feature_picture
from mim_bench.targets.teacher import frozen_teacher


class FeatureTarget(Target):
    """Layer-normalised features of a frozen teacher, (B, L, D) float32."""

    Params = FeatureParams
    version = FeatureParams.version
    precision = "model"
    picture_uses_ground_truth = True

    def __init__(self, params: FeatureParams, context: TargetContext) -> None:
        super().__init__(params, context)
        self.teacher = frozen_teacher(params, context)
        self.dim = self.teacher.embed_dim
        self.num_blocks = min(params.num_blocks, len(list(self.teacher.blocks.children())))
        self.train()

    def train(self, mode: bool = True) -> "FeatureTarget":
        """Stays in evaluation mode: a frozen network."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Batch of images, shape (B, C, H, W), float in [0, 1] -> (B, L, D) float32."""
        layers: Any = self.teacher.forward_intermediates(
            self.geometry.normalize(images),
            indices=self.num_blocks, output_fmt="NLC", intermediates_only=True,
        )  # fmt: skip
        return torch.stack([F.layer_norm(layer.float(), (self.dim,)) for layer in layers]).mean(0)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two (B, N, D) -> (B, N) float32."""
        prediction = prediction.float()
        if self.params.loss == "cosine":
            return 1 - F.cosine_similarity(prediction, target, dim=-1)
        return F.smooth_l1_loss(prediction, target, reduction="none").mean(-1)

    @torch.no_grad()
    def feature(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) float32, the mean over patches."""
        return self(images).mean(1)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, D) -> (B, 3, H, W): principal components of the true features as red, green and blue."""
        return feature_picture(values, self(images), self.geometry)
