"""Every setting, its default, its unit and its source: the one place where defaults live.

A `RunConfig` is resolved once (see `mim_bench.config.resolve`), frozen, written to the run folder and passed
on; nothing reads settings from anywhere else afterwards. Its hash, the run's identity, covers what can
move a weight: target, data, augment, mask, model, pretrain and seed. How a run is evaluated is hashed
into its records instead, and `runtime` (device, workers, precision) into neither: records state it.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mim_bench.config.evaluation import (
    AttentiveConfig,
    EvaluateConfig,
    FinetuneConfig,
    KnnConfig,
    LinearConfig,
    LowShotConfig,
    PartialConfig,
    ScratchConfig,
    SegmentConfig,
    SpeedConfig,
)
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.schedule import PretrainConfig
from mim_bench.schema import AreaRange, AspectRange, Frozen

_Side = Annotated[int, Field(ge=1, le=16_384)]
_Positive = Annotated[float, Field(gt=0)]

IDENTITY = ("seed", "target", "data", "augment", "mask", "model", "pretrain")


def digest(value: Any) -> str:
    """sha256 of a JSON-able value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class TargetConfig(Frozen):
    """The target block: the only part in which the rows of a closed table may differ."""

    name: str
    """Name of the recipe (`targets/<name>.toml`)."""
    class_path: str
    """`module:Class` of the target."""
    version: int
    """The class's version; raised by any change that can move a score."""
    params: dict[str, Any] = Field(default_factory=dict)
    """All parameters of the class, defaults included."""


class DataConfig(Frozen):
    """Images: their source, their size and how many of them."""

    source: str = "embedded"
    """`mim_bench list data` names them; some take a path after a colon."""
    image_size: tuple[_Side, _Side] | None = None
    """Height and width in pixels after the crop; unset: as in the data."""
    in_chans: int | None = Field(default=None, ge=1, le=1024)
    """Channels; unset: as in the data."""
    mean: tuple[float, ...] | None = None
    """Per channel, of images in [0, 1]; unset: ImageNet's for `imagenet`, else the training split's."""
    std: tuple[_Positive, ...] | None = None
    """Per channel, of images in [0, 1]; unset: as `mean`."""
    limit_images: int | None = Field(default=None, ge=2)
    """Largest number of images of each split; for tests, and the record says so."""
    evaluate_on: Literal["test", "tune"] = "test"
    """`tune`: hold a slice of the training split out of everything and evaluate on it, to tune with."""
    tune_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training split held out when `evaluate_on` is `tune`."""
    crop_fraction: float = Field(default=1.0, gt=0, le=1)
    """Side of the central crop at evaluation over the image's short side; 0.875 at 224 px (256 -> 224)."""
    skip_bad_images: bool = False
    """Leave unreadable images out and count them in the record, instead of stopping."""

    @field_validator("image_size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        return value if isinstance(value, (list, tuple)) or value is None else (value, value)


class AugmentConfig(Frozen):
    """Augmentation of pre-training (MAE section 4.1 and Table 1e: crop and flip only)."""

    crop: Literal["random_size", "fixed_size", "none"] = "random_size"
    """`random_size`: RandomResizedCrop; `fixed_size`: a random place only; `none`: the central crop."""
    crop_scale: AreaRange = (0.2, 1.0)
    """Area of a random-size crop over the image's area (MAE)."""
    crop_ratio: AspectRange = (0.75, 4 / 3)
    """Aspect (width over height) of a random-size crop over that of the output (torchvision)."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip (MAE)."""
    color_jitter: float = Field(default=0.0, ge=0, lt=1)
    """Brightness, contrast and saturation are each scaled by 1 ± this (BEiT: 0.4); 0: off (MAE)."""


class MaskConfig(Frozen):
    """Masking: how many patches are hidden, and which."""

    sampling: Literal["random", "block", "grid", "square", "multi_block", "inverse_block"] = (
        "random"
    )
    """`random` (MAE), `block` (BEiT's generator), `grid` (MAE Table 1f: one of every few is kept), `square` (SimMIM's
    units of 2 x 2 patches), `multi_block` (I-JEPA's four blocks are hidden), `inverse_block` (data2vec 2.0: blocks of
    3 x 3 patches are kept)."""
    ratio: float = Field(default=0.75, gt=0, lt=1)
    """Hidden patches over all patches (MAE); L - int(L * (1 - ratio)) are hidden."""
    block_min_patches: int = Field(default=16, ge=1)
    """Least area of a block in patches (BEiT's training script, for a 14 x 14 grid)."""
    block_min_aspect: float = Field(default=0.3, gt=0, le=1)
    """Least aspect of a block, the largest being its inverse (BEiT)."""


class ModelConfig(Frozen):
    """A ViT encoder and a decoder; defaults are ViT-B/16 with MAE's decoder."""

    patch_size: int = Field(default=16, ge=1, le=4096)
    """Side of a patch in pixels."""
    embed_dim: int = Field(default=768, ge=4, le=65_536)
    """Width of the encoder."""
    depth: int = Field(default=12, ge=1, le=1000)
    """Blocks of the encoder."""
    num_heads: int = Field(default=12, ge=1)
    """Attention heads of the encoder."""
    mlp_ratio: float = Field(default=4.0, gt=0, le=64)
    """Hidden width of an MLP over the width of its block, in encoder and decoder."""
    position: Literal["sincos", "learned"] = "sincos"
    """Position tables: fixed 2-D sines and cosines (MAE) or learned (BEiT, the CIFAR MAEs)."""
    mask_tokens: Literal["decoder", "encoder", "encoder_light"] = "decoder"
    """Place where mask tokens enter: `decoder` (MAE), `encoder` and then the decoder (MAE Table 1c), or
    `encoder_light`, the encoder and then one linear layer (BEiT, SimMIM, MaskFeat)."""
    decoder_depth: int = Field(default=8, ge=0, le=1000)
    """Blocks of the decoder (MAE), at least 1 where mask tokens enter there; unused by `encoder_light`."""
    decoder_dim: int = Field(default=512, ge=4, le=65_536)
    """Width of the decoder (MAE); unused by `encoder_light`."""
    decoder_num_heads: int = Field(default=16, ge=1)
    """Attention heads of the decoder (MAE); unused by `encoder_light`."""

    @model_validator(mode="after")
    def _trains_the_encoder(self) -> "ModelConfig":
        if self.mask_tokens == "decoder" and self.decoder_depth == 0:
            raise ValueError(
                "model.decoder_depth=0 with model.mask_tokens=decoder: without a block that mixes tokens no "
                "gradient of a hidden patch reaches the encoder; allowed: 1 or more, or "
                "model.mask_tokens=encoder_light"
            )
        return self

    @model_validator(mode="after")
    def _widths(self) -> "ModelConfig":
        for width, heads in (("embed_dim", "num_heads"), ("decoder_dim", "decoder_num_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"model.{width}={getattr(self, width)} is no multiple of "
                    f"model.{heads}={getattr(self, heads)}"
                )
            if self.position == "sincos" and getattr(self, width) % 4:
                raise ValueError(
                    f"model.{width}={getattr(self, width)} is no multiple of 4, which "
                    "model.position=sincos needs"
                )
        return self


class RuntimeConfig(Frozen):
    """Device, precision and speed of a run, never its result: not part of a run's identity."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto`: cuda, else mps, else cpu."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward and backward pass; `auto`: bfloat16 autocast on cuda and on CPUs with its instructions
    (AVX-512 BF16), float32 elsewhere. Three runs of `small` differed by -0.6 to +0.4 points of linear probe."""
    tf32: bool = False
    """Let cuda round float32 matrix products to TF32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; `auto`: on for cuda, off elsewhere."""
    graph: Literal["auto", "on", "off"] = "auto"
    """Replay pre-training steps as one CUDA graph; `auto`: on cuda, with one process and `accumulation_steps` 1."""
    num_workers: int | None = Field(default=None, ge=0, le=1024)
    """Processes that read images when they do not fit in memory, and beside a GPU augment them for fine-tuning;
    unset: from the core count."""
    memory_gb: float = Field(default=8.0, gt=0)
    """Images are decoded once and kept if they take no more than this (GB of 8-bit pixels), in each process
    of a run."""
    log_every_steps: int = Field(default=20, ge=1)
    """Steps between two lines of the learning curve."""
    checkpoint_every_minutes: float = Field(default=2.0, ge=0)
    """Minutes between two checkpoints, which are written at a line of the learning curve or the end of an epoch, and
    after the last step; 0: at each of them."""
    checkpoint_every_epochs: int | None = Field(default=None, ge=1)
    """Epochs between two checkpoints, instead of minutes."""
    shard: bool = False
    """Split weights, gradients and optimiser state over the processes (FSDP), for encoders that do not fit
    one device (ViT-H and up); without effect on one process."""
    timeout_minutes: float = Field(default=30, gt=0)
    """A process that waits longer for the others of its run ends with an error; what the first one does alone,
    such as a fit, may take longer."""
    tensorboard: bool = False
    """Write the learning curve for TensorBoard too (needs the extra `tensorboard`)."""
    wandb: bool = False
    """Write the learning curve for Weights & Biases too (needs the extra `wandb`): offline, for `wandb sync`, unless
    WANDB_MODE=online."""

    @field_validator("device", mode="before")
    @classmethod
    def _no_number(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("cuda:"):
            number = value.partition(":")[2]
            raise ValueError(
                f"runtime.device={value}: use cuda, with CUDA_VISIBLE_DEVICES={number} before the command"
            )
        return value


class RunConfig(Frozen):
    """One pre-training and its evaluation."""

    preset: str = "none"
    """Name of the preset it started from; a label, the values count."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the initial weights, data order, crops, masks, probes."""
    target: TargetConfig
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    mask: MaskConfig = MaskConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    knn: KnnConfig = KnnConfig()
    linear: LinearConfig = LinearConfig()
    attentive: AttentiveConfig = AttentiveConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    scratch: ScratchConfig = ScratchConfig()
    partial: PartialConfig = PartialConfig()
    low_shot: LowShotConfig = LowShotConfig()
    segment: SegmentConfig = SegmentConfig()
    speed: SpeedConfig = SpeedConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    def identity(self) -> dict[str, Any]:
        """The fields that can move a pre-trained weight."""
        return self.model_dump(mode="json", include=set(IDENTITY))

    @property
    def hash(self) -> str:
        """sha256 of the identity."""
        return digest(self.identity())

    @property
    def run_id(self) -> str:
        """Name of the run's folder: target, preset, seed and the first 8 digits of the hash."""
        return f"{self.target.name}-{self.preset}-s{self.seed}-{self.hash[:8]}"

    @model_validator(mode="after")
    def _some_blocks(self) -> "RunConfig":
        blocks, depth = self.partial.blocks, self.model.depth
        if "partial" in self.evaluate.protocols and min(blocks) >= depth:
            raise ValueError(
                f"partial.blocks={min(blocks):g} or more of model.depth={depth}: nothing is left frozen; "
                f"allowed: 0.5 and whole numbers below {depth}"
            )
        return self

    @model_validator(mode="after")
    def _augmentable(self) -> "RunConfig":
        sections = {part for name in self.evaluate.protocols for part in PROTOCOLS[name].sections}
        for name in sorted(sections & {"finetune", "scratch"}):
            text = getattr(self, name).rand_augment
            if text and self.data.in_chans not in (None, 1, 3):
                raise ValueError(
                    f"{name}.rand_augment={text}: RandAugment works on 1 or 3 channels, these images have "
                    f"{self.data.in_chans}; use {name}.rand_augment=none"
                )
        return self

    @model_validator(mode="after")
    def _geometry(self) -> "RunConfig":
        """Checks what depends on the image size, once that is known."""
        if self.data.image_size is None:
            return self
        (height, width), patch = self.data.image_size, self.model.patch_size
        if height % patch or width % patch:
            raise ValueError(
                f"data.image_size={height}x{width} is no multiple of model.patch_size={patch}"
            )
        num_patches = (height // patch) * (width // patch)
        visible = int(num_patches * (1 - self.mask.ratio))
        if not 2 <= visible < num_patches:  # a single patch says nothing of any other
            fault = f"{visible} visible" if visible < 2 else "no hidden"
            raise ValueError(
                f"mask.ratio={self.mask.ratio} leaves {fault} of {num_patches} patches "
                f"({height // patch}x{width // patch}); allowed: from above 0 to "
                f"{max(0.0, 1 - 2 / num_patches):.4g}, so that two stay visible"
            )
        return self
