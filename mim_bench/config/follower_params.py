"""Parameters of the built-in targets whose teacher follows the student."""

from pydantic import Field

from mim_bench.config.params_base import TargetParams


class EmaFeatureParams(TargetParams):
    """Parameters of the `ema_feature` target."""

    num_blocks: int = Field(default=6, ge=1)
    """Top blocks of the teacher whose outputs are averaged (data2vec: 6 of 12); at most the model's depth."""
    beta: float = Field(default=2.0, gt=0)
    """Difference at which the loss turns from squared to absolute (data2vec's value for images)."""
    tau_start: float = Field(default=0.999, ge=0, le=1)
    """Rate of the moving average at the first update."""
    tau_end: float = Field(default=0.9998, ge=0, le=1)
    """Rate of the moving average after the warm-up (data2vec's value for images)."""
    tau_fraction: float = Field(default=0.3, gt=0, le=1)
    """Share of all updates over which the rate rises linearly."""


class BootstrapParams(TargetParams):
    """Parameters of the `bootstrap` target."""

    num_stages: int = Field(default=2, ge=1, le=100)
    """Stages of equally many updates (dBOT: 2, each a pre-training of its own)."""
    num_blocks: int = Field(default=1, ge=1)
    """Top blocks of the teacher whose outputs are averaged (dBOT: the last)."""
    beta: float = Field(default=1.0, gt=0)
    """Difference at which the loss turns from squared to absolute."""


class EmaTokenParams(TargetParams):
    """Parameters of the `ema_token` target."""

    num_prototypes: int = Field(default=256, ge=2, le=65_536)
    """Prototypes (iBOT: 8192, for far longer training)."""
    tau_start: float = Field(default=0.996, ge=0, le=1)
    """Rate of the teacher's moving average at the first update (iBOT's value)."""
    tau_end: float = Field(default=1.0, ge=0, le=1)
    """Rate at the last update, reached by a cosine (iBOT's value)."""
    temperature_start: float = Field(default=0.04, gt=0)
    """Temperature of the teacher's cosines at the first update (iBOT's value)."""
    temperature_end: float = Field(default=0.07, gt=0)
    """Temperature after the warm-up (iBOT's value for patches)."""
    temperature_fraction: float = Field(default=0.1, gt=0, le=1)
    """Share of all updates over which the temperature rises linearly (iBOT: 30 epochs of 400)."""
    center_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Rate of the centres' moving average (iBOT's value)."""
    class_weight: float = Field(default=0.0, ge=0)
    """Weight of the class token's loss (iBOT: 1, between two crops); 0: patches alone."""


class LatentClusterParams(TargetParams):
    """Parameters of the `latent_cluster` target."""

    num_prototypes: int = Field(default=256, ge=2, le=65_536)
    """Prototypes (CAPI: 16,384, for far longer training)."""
    temperature: float = Field(default=0.06, gt=0)
    """Temperature of the assignment (CAPI's value, whose prototypes may have any length)."""
    tau_start: float = Field(default=0.999, ge=0, le=1)
    """Rate of the teacher's moving average at the first update (CAPI: 0.999 after a warm-up)."""
    tau_end: float = Field(default=1.0, ge=0, le=1)
    """Rate at the last update, reached by a cosine (CAPI's value)."""
    momentum: float = Field(default=0.99, ge=0, lt=1)
    """Rate of the moving averages of prototypes and centre."""
    sinkhorn_rate: float = Field(default=0.3, gt=0, le=1)
    """Share of an iteration of Sinkhorn's that each update takes; 1: a whole one (CAPI: 3 on each batch)."""


class ContrastiveParams(TargetParams):
    """Parameters of the `contrastive` reference."""

    width: int = Field(default=128, ge=1, le=65_536)
    """Width of an embedding (MoCo v3: 256)."""
    temperature: float = Field(default=0.2, gt=0)
    """Temperature of the cosines (MoCo v3's value)."""
    tau_start: float = Field(default=0.99, ge=0, le=1)
    """Rate of the teacher's moving average at the first update (MoCo v3's value for ViTs)."""
    tau_end: float = Field(default=1.0, ge=0, le=1)
    """Rate at the last update, reached by a cosine (MoCo v3's value)."""
