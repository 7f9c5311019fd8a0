"""Description of a target for people: the definition in its file, its values at a preset."""

import importlib
import inspect

from mim_bench.config.run import RunConfig
from mim_bench.evaluate import flops
from mim_bench.experiment.cost import sized
from mim_bench.target import target_class
from mim_bench.targets.build import make_target


def definition(class_path: str) -> str:
    """The docstring of the target's module, else of its class: what it is, formula, differences, legend."""
    cls = target_class(class_path)
    module = importlib.import_module(class_path.partition(":")[0])
    return inspect.getdoc(module) or inspect.getdoc(cls) or "it does not say what it is"


def shape(config: RunConfig) -> str:
    """`64 patches, head of width 256; 4.1 MFLOPs an image in matrix products`: a target at a preset's geometry."""
    config = sized(config)
    target = make_target(config)
    parts = [f"{target.geometry.num_patches} patches, head of width {target.dim}"]
    if products := flops.target(config).forward:
        parts.append(f"{products / 1e6:.3g} MFLOPs an image in matrix products")
    parts += ["fitted to the training images"] * target.needs_fit
    parts += ["follows the student"] * target.follows_student
    return "; ".join(parts)
