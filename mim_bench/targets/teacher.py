"""Frozen networks that targets are taken from: random ones, finished runs, timm's with a local file of weights.

Nothing is downloaded, and every tensor of a file must match.

Legend: H W image, p patch side.
"""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mim_bench import rng
from mim_bench.config.teacher_params import TeacherParams
from mim_bench.errors import UserError
from mim_bench.target import TargetContext


def frozen_teacher(params: TeacherParams, context: TargetContext) -> VisionTransformer:
    """A frozen ViT of the run's grid of patches, in evaluation mode.

    Raises:
        UserError: no such teacher, or one with another grid.
    """
    return _teacher(params, context).requires_grad_(False).eval()


def _teacher(params: TeacherParams, context: TargetContext) -> VisionTransformer:
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
    student_shape = (context.geometry.image_size, context.geometry.patch_size)
    if size != student_shape:
        raise UserError(
            f"teacher='{folder}' has images and patches of {size}; this run has {student_shape}"
        )
    teacher = _vit(context, shape)
    _load(teacher, tensors, str(folder))
    return teacher


def _of_timm(params: TeacherParams, context: TargetContext) -> VisionTransformer:
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


def _load(teacher: VisionTransformer, tensors: dict[str, Tensor], origin: str) -> None:
    missing, unexpected = teacher.load_state_dict(tensors, strict=False)
    if missing or unexpected:
        raise UserError(
            f"teacher='{origin}': {len(tensors) - len(unexpected)} tensors matched, {len(missing)} missing, "
            f"{len(unexpected)} unexpected"
        )
