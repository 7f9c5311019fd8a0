"""A target from a resolved config, or from a recipe outside a run."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from mim_bench.config.recipe import load_recipe
from mim_bench.config.resolve import explain
from mim_bench.config.run import ModelConfig, RunConfig
from mim_bench.config.source import IMAGENET_MEAN, IMAGENET_STD
from mim_bench.errors import UserError
from mim_bench.target import Geometry, Target, TargetContext, target_class


def geometry(config: RunConfig) -> Geometry:
    """Geometry of a target from a config, which must be complete (see `mim_bench.data.run_data.complete`)."""
    data = config.data
    if data.image_size is None or data.in_chans is None or data.mean is None or data.std is None:
        raise ValueError("the config still leaves image size, channels or statistics to the data")
    return Geometry(data.image_size, config.model.patch_size, data.in_chans, data.mean, data.std)


def make_target(config: RunConfig) -> Target:
    """The target of a complete config, not yet fitted."""
    cls = target_class(config.target.class_path)
    context = TargetContext(geometry(config), config.model, config.seed)
    return cls(cls.Params.model_validate(config.target.params), context)


def build_target(
    name_or_toml: str,
    *,
    image_size: int | tuple[int, int],
    patch_size: int,
    in_chans: int = 3,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    model: ModelConfig | None = None,
    seed: int = 0,
    **params: Any,
) -> Target:
    """A target by recipe name or path, for use outside a run.

    Args:
        image_size: pixels, side or (height, width); a multiple of `patch_size`.
        mean, std: per channel, of images in [0, 1]; a single value serves every channel.
        model: the student, for targets that are built from it; by default ViT-B of this patch size.
        params: over the recipe's own.

    Raises:
        UserError: unknown recipe or parameter, a value not allowed, or sizes that do not fit.
    """
    recipe = load_recipe(name_or_toml)
    cls = target_class(recipe.class_path)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size[0] % patch_size or size[1] % patch_size:
        raise UserError(f"image_size={size} is no multiple of patch_size={patch_size}")

    def per_channel(values: Sequence[float], field: str) -> tuple[float, ...]:
        if len(values) not in (1, in_chans):
            raise UserError(f"{field} has {len(values)} values for in_chans={in_chans}")
        return tuple(values) * (in_chans if len(values) == 1 else 1)

    built = Geometry(size, patch_size, in_chans, per_channel(mean, "mean"), per_channel(std, "std"))
    context = TargetContext(built, model or ModelConfig(patch_size=patch_size), seed)
    try:
        return cls(cls.Params.model_validate({**recipe.params, **params}), context)
    except ValidationError as error:
        raise UserError(f"target '{name_or_toml}': {explain(error)}") from None
