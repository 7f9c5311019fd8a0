"""Parameters and versions of the built-in targets, apart from their classes, so that reading needs no torch.

A class from outside the package carries its own `Params` and `version`.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mim_bench.config.follower_params import (
    BootstrapParams,
    ContrastiveParams,
    EmaFeatureParams,
    EmaTokenParams,
    LatentClusterParams,
)
from mim_bench.config.params_base import TargetParams
from mim_bench.config.teacher_params import (
    FeatureParams,
    RelationParams,
    VqDistilledParams,
    VqPerceptualParams,
)
from mim_bench.files import file_sha256

LossName = Literal["mse", "l1", "smooth_l1"]
"""`mse`: d^2; `l1`: |d|; `smooth_l1`: d^2 / 2 where |d| < 1, else |d| - 1/2."""
Reconstruction = Literal["logit_laplace", "l2"]
"""Likelihood of the pixels in a tokenizer's fit."""


class PixelParams(TargetParams):
    """Parameters of the `pixel` target."""

    depends_on_seed = False

    loss: LossName = "mse"
    """Per value, averaged over the patch. `mse` is MAE's, `l1` SimMIM's."""


class NormPixelParams(TargetParams):
    """Parameters of the `norm_pixel` target."""

    depends_on_seed = False

    loss: LossName = "mse"
    """Per value, averaged over the patch. `mse` is MAE's."""
    eps: float = Field(default=1e-6, gt=0)
    """Added to a patch's variance, in units of the normalised image squared; MAE's value."""


class HogParams(TargetParams):
    """Parameters of the `hog` target."""

    depends_on_seed = False

    num_bins: int = Field(default=9, ge=2, le=360)
    """Orientation bins in 180 degrees; MaskFeat's value."""
    cells_per_side: int | None = Field(default=None, ge=1, le=1024)
    """Cells along a patch's side. None: 2 (MaskFeat's) if that gives whole cells of 2 pixels or more, else 1."""
    normalize: bool = True
    """L2 over the bins of each cell and channel. False: sums of magnitudes, in units of the image range."""
    gaussian_window: int = Field(default=0, ge=0, le=4096)
    """Side in pixels of a Gaussian (std half of it) that weighs magnitudes, tiled over the image; 0: none.
    MaskFeat passes 0, mmpretrain's copy of the layer 16."""
    loss: LossName = "mse"
    """Per value, averaged over the patch. `mse` is MaskFeat's."""


class DvaeParams(TargetParams):
    """Parameters of the `dvae` target; the defaults suit 10,000 images of 28x28 on two CPU cores."""

    weights: str | None = None
    """Local file of the published DALL-E encoder (pickled module, state dict or safetensors); its size
    is read from the file, and every other parameter is then without effect (BEiT uses this)."""
    weights_sha256: str | None = None
    """sha256 of the content of `weights`, filled in when unset, so that a run's hash covers it."""
    vocab_size: int = Field(default=256, ge=2, le=65_536)
    """Number of tokens (8192 in DALL-E)."""
    width: int = Field(default=24, ge=4, le=4096)
    """Channels of the first group of blocks (n_hid; 256 in DALL-E)."""
    blocks_per_group: int = Field(default=1, ge=1, le=100)
    """Residual blocks between two changes of resolution (2 in DALL-E)."""
    residual_gain: float | None = Field(default=1.0, gt=0)
    """Factor on each residual path; None: 1 / (number of blocks)^2 as in DALL-E, slow in short fits."""
    reconstruction: Reconstruction = "l2"
    """Likelihood of the pixels: DALL-E's logit_laplace, or a Gaussian of standard deviation 0.05 (l2),
    which halves the squared error of a fit of minutes."""
    fit_epochs: int = Field(default=6, ge=1)
    """Passes over the training images (DALL-E: 3 million updates)."""
    fit_batch_size: int = Field(default=32, ge=1, le=1_000_000)
    """Images an update (512 in DALL-E)."""
    fit_lr: float = Field(default=6e-3, gt=0)
    """Peak learning rate of Adam (1e-4 in DALL-E), falling by a cosine to a hundredth of it."""
    temperature_start: float = Field(default=1.0, gt=0)
    """Temperature of the Gumbel-softmax at the first update (DALL-E's value)."""
    temperature_end: float = Field(default=0.0625, gt=0)
    """Temperature at the end of the annealing (DALL-E's value, 1/16)."""
    temperature_fraction: float = Field(default=0.7, gt=0, le=1)
    """Fraction of all updates over which the temperature falls (0.05 in DALL-E)."""
    kl_weight: float = Field(default=0.1, ge=0)
    """Weight of each token's KL divergence to the uniform distribution, in units of the evidence lower
    bound (beta; 6.6 in DALL-E)."""
    balance_weight: float = Field(default=15.0, ge=0)
    """Weight, in the same units, of the divergence of a batch's mean distribution to the uniform one;
    keeps the vocabulary in use in a short fit (our own; 0 in DALL-E)."""
    kl_warmup_fraction: float = Field(default=0.2, gt=0, le=1)
    """Fraction of all updates over which both weights rise from 0 (5000 updates in DALL-E)."""

    @model_validator(mode="before")
    @classmethod
    def _hash_weights(cls, values: Any) -> Any:
        """A config names the file by its content, not by its place alone."""
        if isinstance(values, dict) and values.get("weights") and not values.get("weights_sha256"):
            return {**values, "weights_sha256": file_sha256(Path(values["weights"]).expanduser())}
        return values

    @model_validator(mode="after")
    def _temperature_falls(self) -> "DvaeParams":
        if self.temperature_end > self.temperature_start:
            raise ValueError(
                f"temperature_end is {self.temperature_end}; allowed: at most temperature_start "
                f"({self.temperature_start})"
            )
        return self


class PcaParams(TargetParams):
    """Parameters of the `pca` target."""

    share: float = Field(default=0.125, gt=0, le=1)
    """Share of a patch's principal components that is kept, the largest; MAE: 96 of 768."""
    loss: LossName = "mse"
    """Per coefficient, averaged over those kept."""


class MeanColorParams(TargetParams):
    """Parameters of the `mean_color` and `downsized` targets."""

    depends_on_seed = False

    cells_per_side: int = Field(default=1, ge=1, le=64)
    """Cells along a patch's side, each with a class of its own (ViT: 1, or 4)."""
    bits: int = Field(default=3, ge=1, le=8)
    """Bits of each channel of a mean colour (ViT: 3)."""


class PaletteParams(TargetParams):
    """Parameters of the `palette` target."""

    num_colors: int = Field(default=512, ge=2, le=4096)
    """Colours of the palette (iGPT: 512)."""
    cells_per_side: int = Field(default=4, ge=1, le=64)
    """Pixels along the side of a downsized patch."""


class PatchKmeansParams(TargetParams):
    """Parameters of the `patch_kmeans` target."""

    num_clusters: int = Field(default=50, ge=2, le=4096)
    """Mean patches (ClusterMIM: 50)."""


class FrequencyParams(TargetParams):
    """Parameters of the `frequency` and `fourier` targets."""

    depends_on_seed = False

    kind: Literal["low_pass", "spectrum"] = "low_pass"
    """`low_pass`: pixels without high frequencies (PixMIM); `spectrum`: the transform of each patch (MFM)."""
    cutoff: float = Field(default=40 / 224, gt=0, le=1)
    """`low_pass`: greatest frequency that is kept, in cycles a pixel (PixMIM: radius 40 at 224 pixels)."""
    loss: LossName = "mse"
    """`low_pass`: per value, averaged over the patch."""


class WaveletParams(TargetParams):
    """Parameters of the `wavelet` target."""

    depends_on_seed = False

    levels: int | None = Field(default=None, ge=1, le=10)
    """Levels of details; unset: down to single coefficients."""


class EdgesParams(TargetParams):
    """Parameters of the `edges` target."""

    depends_on_seed = False

    operator: Literal["sobel", "laplacian", "lbp", "canny"] = "sobel"
    """Magnitude of the gradient, Laplacian, local binary pattern, or Canny's edges."""
    loss: LossName = "mse"
    """Per value, averaged over the patch."""


class HogMultiscaleParams(TargetParams):
    """Parameters of the `hog_multiscale` target."""

    depends_on_seed = False

    num_bins: int = Field(default=9, ge=2, le=360)
    """Orientation bins in 180 degrees."""
    cells_per_side: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Cells along a patch's side, scale by scale; unset: 1, 2, 4 and 8, as far as cells have 2 pixels."""


class RandomProjectionParams(TargetParams):
    """Parameters of the `random_projection` target."""

    vocab_size: int = Field(default=256, ge=2, le=65_536)
    """Entries of the codebook (BEST-RQ: 8192, for far longer training)."""
    width: int = Field(default=16, ge=1, le=1024)
    """Width of projection and codebook (BEST-RQ: 16)."""


class SumParams(TargetParams):
    """Parameters of the `hog_pixel` target, and of any sum."""

    weights: dict[str, float] = Field(default={"hog": 1.0, "pixel": 1.0}, min_length=1)
    """Regression target -> weight of its loss."""
    settings: dict[str, dict[str, Any]] = {}
    """Target -> its parameters, where they are not its defaults."""

    @field_validator("weights")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"weights: {name}={weight}: allowed: numbers above 0")
        return value


BUILT_IN: dict[str, type[TargetParams]] = {
    "mim_bench.targets.pixel:PixelTarget": PixelParams,
    "mim_bench.targets.norm_pixel:NormPixelTarget": NormPixelParams,
    "mim_bench.targets.hog:HogTarget": HogParams,
    "mim_bench.targets.dvae:DvaeTarget": DvaeParams,
    "mim_bench.targets.ema_feature:EmaFeatureTarget": EmaFeatureParams,
    "mim_bench.targets.bootstrap:BootstrapTarget": BootstrapParams,
    "mim_bench.targets.ema_token:EmaTokenTarget": EmaTokenParams,
    "mim_bench.targets.latent_cluster:LatentClusterTarget": LatentClusterParams,
    "mim_bench.targets.contrastive:ContrastiveTarget": ContrastiveParams,
    "mim_bench.targets.pca:PcaTarget": PcaParams,
    "mim_bench.targets.mean_color:MeanColorTarget": MeanColorParams,
    "mim_bench.targets.palette:PaletteTarget": PaletteParams,
    "mim_bench.targets.patch_kmeans:PatchKmeansTarget": PatchKmeansParams,
    "mim_bench.targets.frequency:FrequencyTarget": FrequencyParams,
    "mim_bench.targets.wavelet:WaveletTarget": WaveletParams,
    "mim_bench.targets.edges:EdgesTarget": EdgesParams,
    "mim_bench.targets.hog_multiscale:HogMultiscaleTarget": HogMultiscaleParams,
    "mim_bench.targets.feature:FeatureTarget": FeatureParams,
    "mim_bench.targets.relation:RelationTarget": RelationParams,
    "mim_bench.targets.vq_distilled:VqDistilledTarget": VqDistilledParams,
    "mim_bench.targets.vq_perceptual:VqPerceptualTarget": VqPerceptualParams,
    "mim_bench.targets.hog_pixel:SumTarget": SumParams,
    "mim_bench.targets.random_projection:RandomProjectionTarget": RandomProjectionParams,
}
"""`module:Class` -> its parameters."""
