"""Relations between patches in a frozen teacher: TinyMIM (Ren et al. 2023, arXiv 2301.01296, section 3).

In each head of one block of the teacher, a patch's query, key or value is compared with those of all patches; the
soft-max of the products over the square root of the head's width says how much the patch has to do with each of them
(`qq` queries with queries, `vv` values with values, ...). The loss is the KL divergence, the mean over heads and kinds.

Deliberate differences: TinyMIM makes the student's own queries and values have these relations, on whole images, and
so needs no head; here they are predicted for hidden patches by the head that all targets share. Relations to the class
token are left out. The teacher is that of `feature`: without one it is random.

Legend: B batch, C channels, H W image, L patches, R kinds, M heads and d their width in the teacher, dim = R * M * L.
"""

import torch
from torch import Tensor, nn

from mim_bench.config.teacher_params import RelationParams
from mim_bench.errors import UserError
from mim_bench.target import TargetContext
from mim_bench.targets.feature_picture import feature_picture
from mim_bench.targets.soft_target import SoftTarget
from mim_bench.targets.teacher import frozen_teacher


class RelationTarget(SoftTarget):
    """Relations of each patch with every patch, (B, L, R * M * L) float32, each L of them summing to 1."""

    Params = RelationParams
    version = RelationParams.version
    precision = "model"
    picture_uses_ground_truth = True

    def __init__(self, params: RelationParams, context: TargetContext) -> None:
        super().__init__(params, context)
        self.teacher = frozen_teacher(params, context)
        depth = len(list(self.teacher.blocks.children()))
        if not -depth <= params.block < depth:
            raise UserError(
                f"block={params.block}: allowed: {-depth} to {depth - 1}, the teacher has {depth} blocks"
            )
        self.block = params.block % depth
        attention = self.teacher.get_submodule(f"blocks.{self.block}.attn")
        self.num_heads = int(getattr(attention, "num_heads", 1))
        self.num_distributions = len(params.kinds) * self.num_heads
        self.dim = self.num_distributions * self.geometry.num_patches
        self.train()

    def train(self, mode: bool = True) -> "RelationTarget":
        """Stays in evaluation mode: a frozen network."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Batch of images, shape (B, C, H, W), float in [0, 1] -> (B, L, R * M * L) float32."""
        projections = self._projections(self.geometry.normalize(images))
        related = [
            (
                projections[a] @ projections[b].transpose(-1, -2) / projections[a].shape[-1] ** 0.5
            ).softmax(-1)
            for a, b in self.params.kinds
        ]
        return torch.stack(related, dim=1).permute(0, 3, 1, 2, 4).flatten(2)  # (B, R, M, L, L)

    def _projections(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images -> queries q, keys k and values v of all patches, (B, M, L, d) float32 each."""
        projections: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            projections.append(output)

        hook = self.teacher.get_submodule(f"blocks.{self.block}.attn.qkv").register_forward_hook(
            keep
        )
        with hook:
            self.teacher.forward_intermediates(
                images, indices=[self.block], stop_early=True, intermediates_only=True
            )
        patches = projections[0][:, self.teacher.num_prefix_tokens :].float()
        heads = patches.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return dict(zip("qkv", heads, strict=True))

    @torch.no_grad()
    def feature(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim) float32, the mean over patches."""
        return self(images).mean(1)

    def picture(self, values: Tensor, images: Tensor) -> Tensor:
        """(B, L, dim) -> (B, 3, H, W): principal components of the true relations as red, green and blue."""
        return feature_picture(values, self(images), self.geometry)
