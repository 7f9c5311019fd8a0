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

import json
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mim_bench import rng
from mim_bench.config.target_params import FeatureParams
from mim_bench.errors import UserError
from mim_bench.target import Target, TargetContext
from mim_bench.targets.feature_picture import feature_picture


class FeatureTarget(Target):
    """Layer-normalised features of a frozen teacher, (B, L, D) float32."""

    Params = FeatureParams
    version = FeatureParams.version
    precision = "model"
    picture_uses_ground_truth = True

    def __init__(self, params: FeatureParams, context: TargetContext) -> None:
        super().__init__(params, context)
        self.teacher = _teacher(params, context).requires_grad_(False)
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


def _teacher(params: FeatureParams, context: TargetContext) -> VisionTransformer:
    """A frozen ViT of the run's grid."""
    if params.teacher == "random":
        if context.model is None:
            raise UserError("teacher='random' has the student's shape, whose model must be given")
        model = context.model
        shape = {"embed_dim": model.embed_dim, "depth": model.depth, "num_heads": model.num_heads}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.integer(seed=context.seed, stream="random teacher"))
            return _vit(context, shape)
    if params.teacher.startswith("timm:"):
        return _of_timm(params, context)
    return _of_run(Path(params.teacher).expanduser(), context)


def _vit(context: TargetContext, shape: dict[str, Any]) -> VisionTransformer:
    geometry = context.geometry
    return VisionTransformer(
        img_size=geometry.image_size, patch_size=geometry.patch_size, in_chans=geometry.in_chans,
        num_classes=0, global_pool="", **shape,
    )  # fmt: skip


def _of_run(folder: Path, context: TargetContext) -> VisionTransformer:
    """The encoder of a finished run, every tensor of it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "encoder.safetensors")
        model = config["model"]
        shape = {key: model[key] for key in ("embed_dim", "depth", "num_heads")}
        size = (tuple(config["data"]["image_size"]), model["patch_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"teacher='{folder}' is no finished run: {error}") from None
    own = (context.geometry.image_size, context.geometry.patch_size)
    if size != own:
        raise UserError(f"teacher='{folder}' has images and patches of {size}; this run has {own}")
    teacher = _vit(context, shape)
    _load(teacher, tensors, str(folder))
    return teacher


def _of_timm(params: FeatureParams, context: TargetContext) -> VisionTransformer:
    name = params.teacher.removeprefix("timm:")
    if params.weights is None:
        raise UserError(f"teacher='{params.teacher}' needs weights=FILE: nothing is downloaded")
    try:
        teacher = timm.create_model(
            name, pretrained=False, num_classes=0, global_pool="", img_size=context.geometry.image_size,
            in_chans=context.geometry.in_chans, checkpoint_path=str(Path(params.weights).expanduser()),
        )  # fmt: skip
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise UserError(f"teacher='{params.teacher}': {str(error).splitlines()[0]}") from None
    grid = getattr(getattr(teacher, "patch_embed", None), "grid_size", None)
    if not isinstance(teacher, VisionTransformer) or tuple(grid or ()) != context.geometry.grid:
        raise UserError(
            f"teacher='{params.teacher}' has no {context.geometry.grid} grid of patches, which this run has"
        )
    return teacher


def _load(teacher: VisionTransformer, tensors: dict[str, Tensor], place: str) -> None:
    missing, unexpected = teacher.load_state_dict(tensors, strict=False)
    if missing or unexpected:
        raise UserError(
            f"teacher='{place}': {len(tensors) - len(unexpected)} tensors matched, {len(missing)} missing, "
            f"{len(unexpected)} unexpected"
        )
