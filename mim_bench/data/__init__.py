"""Images: where they lie, which part of them is seen, and how they reach the model."""

from mim_bench.data.crop import Crop, EvalCrop, eval_box
from mim_bench.data.feed import Hook
from mim_bench.data.image_set import ArraySet, ImageSet, Source, hold_out, limit
from mim_bench.data.jitter import ColorJitter
from mim_bench.data.resample import Interpolation
from mim_bench.data.source import list_sources, open_source, resolve_source
from mim_bench.data.split import Split, load_split, normalisation

__all__ = [
    "ArraySet",
    "ColorJitter",
    "Crop",
    "EvalCrop",
    "Hook",
    "ImageSet",
    "Interpolation",
    "Source",
    "Split",
    "eval_box",
    "hold_out",
    "limit",
    "list_sources",
    "load_split",
    "normalisation",
    "open_source",
    "resolve_source",
]
