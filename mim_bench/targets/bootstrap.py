"""Features of the previous stage's student, the first of random weights: dBOT (Liu et al. 2022, arXiv 2209.03917).

Training is cut into stages of equally many steps. The teacher of the first is the student at its initial weights; at
the end of each stage it becomes the student's encoder of that moment, and stays so through the next. The target of a
patch is the layer-normalised output of the teacher's last block, the loss smooth L1.

Deliberate differences: dBOT begins each stage with a student at new random weights and a full schedule, so that two
stages are two pre-trainings; here the stages share one run's steps and learning-rate schedule, and the student goes
on, because a row of a closed table has no more updates than the others. The first teacher has the student's initial
weights, where dBOT draws others.

Legend: B batch, C channels, H W image, L patches, D width of the encoder = dim.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from mim_bench.config.follower_params import BootstrapParams
from mim_bench.targets.ema_feature import EmaFeatureTarget


class BootstrapTarget(EmaFeatureTarget):
    """Layer-normalised features of the student as it was when the stage began, (B, L, D) float32."""

    Params = BootstrapParams
    version = BootstrapParams.version

    @torch.no_grad()
    def after_step(self, student: nn.Module, step: int, num_steps: int) -> None:
        """The teacher becomes the student after the last step of each stage but the last."""
        num_stages = self.params.num_stages
        if step in (num_steps * stage // num_stages for stage in range(1, num_stages)):
            parameters: list[Tensor] = [*cast(nn.Module, self.teacher).parameters()]
            torch._foreach_copy_(parameters, [*cast(Any, student).encoder.parameters()])
