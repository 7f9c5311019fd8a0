"""Losses of the targets that are regressed: the mean over a patch's values, one number a patch.

MAE (He et al. 2022, section 3) and MaskFeat use the squared error, SimMIM (Xie et al. 2022, section 3.4)
the absolute one, data2vec (Baevski et al. 2022, equation 2) the smooth one.

Legend: B batch, L patches, D values of a patch.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mim_bench.config.target_params import LossName

_LOSSES: dict[LossName, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
}


def regression_loss(name: LossName, prediction: Tensor, target: Tensor) -> Tensor:
    """Prediction and target (B, L, D) -> (B, L) float32, the mean over D.

    float32 whatever comes in, also under autocast. No gradient flows into `target`.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)}")
    losses = _LOSSES[name](prediction.float(), target.detach().float(), reduction="none")
    return losses.mean(dim=-1)
