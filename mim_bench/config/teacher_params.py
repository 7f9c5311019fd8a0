"""Parameters of the targets taken from a frozen teacher, and of the tokenizers trained with one."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mim_bench.config.params_base import TargetParams
from mim_bench.files import file_sha256


class TeacherParams(TargetParams):
    """Parameters of targets that are taken from a frozen teacher."""

    teacher: str = "random"
    """`random`: the student's shape at random weights; the folder of a finished run; or `timm:NAME`."""
    weights: str | None = None
    """Local file of weights of a `timm:NAME`."""
    sha256: str | None = None
    """SHA-256 of the teacher's weights, filled in when unset, so that a run's hash covers them."""

    @model_validator(mode="before")
    @classmethod
    def _hash_weights(cls, values: Any) -> Any:
        """A config names the teacher by its content, not by its place alone."""
        if not isinstance(values, dict) or values.get("sha256"):
            return values
        teacher = str(values.get("teacher", "random"))
        path = Path(str(values.get("weights") or f"{teacher}/encoder.safetensors")).expanduser()
        if teacher == "random" or not path.is_file():
            return values
        return {**values, "sha256": file_sha256(path)}


class FeatureParams(TeacherParams):
    """Parameters of the `feature` and `random_feature` targets."""

    num_blocks: int = Field(default=1, ge=1)
    """Top blocks of the teacher whose outputs are averaged."""
    loss: Literal["cosine", "smooth_l1"] = "cosine"
    """`cosine`: MaskFeat's for deep features; `smooth_l1`: dBOT's."""


class RelationParams(TeacherParams):
    """Parameters of the `relation` target."""

    kinds: tuple[Literal["qq", "kk", "vv", "qk"], ...] = Field(default=("qq", "vv"), min_length=1)
    """Relations between patches: of queries, keys, values, or queries with keys."""
    block: int = -1
    """Block of the teacher, from 0, or from the end where negative. TinyMIM: the last, or an earlier one where
    the teacher is deeper than the student."""


class VqParams(TeacherParams):
    """Parameters of a vector-quantised tokenizer; the defaults suit 10,000 images of 32x32 on two CPU cores."""

    vocab_size: int = Field(default=256, ge=2, le=65_536)
    """Number of codes (BEiT v2 and PeCo: 8192)."""
    code_width: int = Field(default=32, ge=1, le=4096)
    """Width of a code (BEiT v2: 32)."""
    width: int = Field(default=24, ge=4, le=4096)
    """Channels of the first group of blocks, as of `dvae`."""
    blocks_per_group: int = Field(default=1, ge=1, le=100)
    """Residual blocks between two changes of resolution."""
    commitment: float = Field(default=1.0, ge=0)
    """Weight of 1 - cosine between the encoder's output and its code."""
    decay: float = Field(default=0.98, ge=0, lt=1)
    """Rate of the codes' moving average (BEiT v2: 0.99, for far longer fits)."""
    fit_epochs: int = Field(default=6, ge=1)
    """Passes over the training images (BEiT v2: 100)."""
    fit_batch_size: int = Field(default=32, ge=1, le=1_000_000)
    """Images an update."""
    fit_lr: float = Field(default=3e-3, gt=0)
    """Peak learning rate of Adam, falling by a cosine to a hundredth of it."""


class VqDistilledParams(VqParams):
    """Parameters of the `vq_distilled` target."""


class VqPerceptualParams(VqParams):
    """Parameters of the `vq_perceptual` target."""

    perceptual_weight: float = Field(default=1.0, ge=0)
    """Weight of the difference of features over that of pixels."""
