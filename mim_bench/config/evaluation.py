"""Settings of the protocols; none of them is part of a run's identity."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from mim_bench.config.protocol import ProtocolName
from mim_bench.config.schedule import ScheduleConfig
from mim_bench.schema import AreaRange, Beta, Fraction, Frozen

_RAND_AUGMENT = re.compile(r"rand(-(m|n|w|p|mstd|mmax|inc)\d+(\.\d+)?)*")


class KnnConfig(Frozen):
    """Weighted nearest neighbours (Wu et al. 2018; DINO's settings)."""

    k: int = Field(default=20, ge=1)
    """Neighbours that vote."""
    temperature: float = Field(default=0.07, gt=0)
    """A neighbour's weight is exp(cosine similarity / temperature)."""


class LinearConfig(ScheduleConfig):
    """Linear probe: converged logistic regression on cached features, or as MAE's appendix A.1, Table 10,
    BatchNorm without affine and LARS, with crops."""

    solver: Literal["lars", "lbfgs"] = "lars"
    """`lars`: MAE's training, of `epochs` passes; `lbfgs`: logistic regression on features of the clean images,
    at its minimum; the settings of the training are then without effect."""
    penalties: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1e-4, 1e-3, 1e-2, 1e-1, 1.0), min_length=1
    )
    """`lbfgs`: inverse penalties c to choose from (loss: c * sum of cross-entropies + half the squared weights). At
    `small` the last is chosen, next to no penalty: up to 1,000 c became 10, and the accuracy of `hog_pixel` 55.53 for
    55.55 %."""
    tune_fraction: Fraction = 0.1
    """`lbfgs`: share of the training images that the penalty is chosen on; it is then solved on all."""

    epochs: int = Field(default=90, ge=1)
    """Passes over the training images (MAE)."""
    batch_size: int = Field(default=16384, ge=2)
    """Images a step (MAE)."""
    blr: float = Field(default=0.1, gt=0)
    """Base learning rate for 256 images (MAE)."""
    warmup_epochs: float = Field(default=10, ge=0)
    """Epochs of linear warm-up (MAE)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """LARS weight decay (MAE: none)."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """LARS momentum (MAE)."""
    augment: bool = True
    """Random crops and flips while probing (MAE); off: features of the clean images, cached."""
    crop_scale: AreaRange = (0.08, 1.0)
    """Area of a crop over the image's area (MAE)."""


class AttentiveConfig(ScheduleConfig):
    """Attentive probe on frozen tokens of the clean images (V-JEPA, arXiv 2404.08471, section 5 and appendix D)."""

    epochs: int = Field(default=20, ge=1)
    """Passes over the training images (V-JEPA: 20)."""
    batch_size: int = Field(default=1024, ge=2)
    """Images a step."""
    blr: float = Field(default=2.5e-4, gt=0)
    """Base learning rate for 256 images (V-JEPA: 1e-3 at its batch)."""
    warmup_epochs: float = Field(default=1, ge=0)
    """Epochs of linear warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's weight decay (V-JEPA: 0.01)."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's betas (torch's)."""


class FinetuneConfig(ScheduleConfig):
    """Fine-tuning as MAE's appendix A.1, Table 9."""

    epochs: int = Field(default=100, ge=1)
    """Passes over the training images (MAE, ViT-B)."""
    batch_size: int = Field(default=1024, ge=2)
    """Images a step (MAE)."""
    blr: float = Field(default=1e-3, gt=0)
    """Base learning rate for 256 images (MAE's paper; its repository: 5e-4 for ViT-B)."""
    warmup_epochs: float = Field(default=5, ge=0)
    """Epochs of linear warm-up (MAE)."""
    min_lr: float = Field(default=1e-6, ge=0)
    """Learning rate at the end of the cosine (MAE's repository)."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's betas (MAE)."""
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    """Each block's learning rate over that of the block above (MAE's paper)."""
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    """Stochastic depth of the last block, linearly less below (MAE, ViT-B)."""
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing (MAE)."""
    mixup: float = Field(default=0.8, ge=0)
    """Alpha of mixup; 0: off (MAE)."""
    cutmix: float = Field(default=1.0, ge=0)
    """Alpha of CutMix; 0: off (MAE)."""
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment string (MAE); unset: off."""
    erasing: float = Field(default=0.0, ge=0, le=1)
    """Probability of random erasing (MAE's repository: 0.25, its paper: none)."""
    crop_scale: AreaRange = (0.08, 1.0)
    """Area of a crop over the image's area (timm's default)."""
    holdout_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the labelled training images that is not trained on, but on which the accuracy of every
    epoch is measured for the learning curve; 0: no curve. The test split is read once, at the end."""

    @field_validator("rand_augment")
    @classmethod
    def _timm_string(cls, value: str | None) -> str | None:
        if value is not None and not _RAND_AUGMENT.fullmatch(value):
            raise ValueError(
                f"finetune.rand_augment={value!r}: allowed: none, or timm's string of magnitude, its deviation, "
                "number of operations, such as rand-m9-mstd0.5-inc1 or rand-m9-n3"
            )
        return value


class ScratchConfig(FinetuneConfig):
    """Supervised training from random weights as MAE's appendix A.2, Table 11, without its average of weights."""

    epochs: int = Field(default=300, ge=1)
    """Passes over the training images (MAE, ViT-B); protocol `scratch_flops` has a length of its own."""
    batch_size: int = Field(default=4096, ge=2)
    """Images a step (MAE)."""
    blr: float = Field(default=1e-4, gt=0)
    """Base learning rate for 256 images (MAE)."""
    warmup_epochs: float = Field(default=20, ge=0)
    """Epochs of linear warm-up (MAE)."""
    weight_decay: float = Field(default=0.3, ge=0)
    """Decoupled weight decay; none for 1-D parameters (MAE)."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's betas (MAE)."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each block's learning rate over that of the block above; 1: none, as there is nothing to keep."""


class PartialConfig(Frozen):
    """Partial fine-tuning (MAE, Figure 9): the settings of `finetune`, on the last blocks only."""

    blocks: tuple[float, ...] = Field(default=(0.5, 1, 2, 4, 6, 12, 18), min_length=1)
    """Trained last blocks; 0.5: the MLP half of the last. Entries of `model.depth` or more are left out,
    as that is `finetune`; 0 is `linear`."""

    @field_validator("blocks")
    @classmethod
    def _whole_or_half(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for blocks in value:
            if blocks != 0.5 and (blocks < 1 or blocks % 1):
                raise ValueError(
                    f"partial.blocks={blocks:g}: allowed: 0.5 and whole numbers from 1"
                )
        return value


class LowShotConfig(Frozen):
    """Logistic regression on frozen features, from few labels (Assran et al. 2022, MSN, section 5)."""

    fractions: tuple[Fraction, ...] = Field(default=(0.01, 0.1), min_length=1)
    """Shares of the training labels, the same number in every class."""
    num_draws: int = Field(default=10, ge=1, le=1000)
    """Draws of the labelled images; which ones depends on the draw's number alone, so every target and
    seed gets the same."""
    c: float = Field(default=1.0, gt=0)
    """Inverse of the L2 penalty, as scikit-learn means it: the loss is c * sum of cross-entropies +
    half the squared weights."""


class SegmentConfig(Frozen):
    """Linear segmentation on frozen patches (DINOv2, arXiv 2304.07193, section 7.4)."""

    source: str = "scenes"
    """Images with masks: `folder:PATH` (train/images, train/masks, and of test or val), `parquet:PATH` (columns image
    and mask), or `scenes`, made of the embedded sample; see `mim_bench.data.masks`."""
    c: float = Field(default=0.01, gt=0)
    """Inverse of the L2 penalty (loss: c * sum of cross-entropies over patches + half the squared weights)."""
    max_train_images: int = Field(default=1000, ge=1, le=1_000_000)
    """Largest number of training images: the features of all their patches are in memory, in double precision."""
    max_test_images: int = Field(default=5000, ge=1, le=1_000_000)
    """Largest number of test images."""


class SpeedConfig(Frozen):
    """Timing of the pre-training step, without any training."""

    warmup_steps: int = Field(default=5, ge=1, le=100_000)
    """Steps before the clock starts."""
    steps: int = Field(default=40, ge=3, le=100_000)
    """Steps timed, one by one."""


class EvaluateConfig(Frozen):
    """Protocols that are run on the encoder, and the readout whose number is the declared one."""

    protocols: tuple[ProtocolName, ...] = ("knn", "linear")
    """Run in this order."""
    layer: Literal["last", "middle"] = "last"
    """Declared readout: after the final norm, or after block depth // 2 (not normalised)."""
    pooling: Literal["cls", "patch_mean"] = "patch_mean"
    """Declared readout: class token (MAE's probe; no loss reaches it directly in pre-training), or mean
    of the patch tokens."""
    batch_size: int = Field(default=500, ge=1, le=1_000_000)
    """Images that go through the encoder at once when features are taken."""

    @field_validator("protocols")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [name for name in value if value.count(name) > 1]:
            raise ValueError(f"evaluate.protocols names {twice[0]} twice; each is run once")
        return value

    @property
    def readout(self) -> str:
        """Name of the declared readout, as in a record's metrics."""
        return f"{self.layer}/{self.pooling}"
