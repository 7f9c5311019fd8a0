"""Settings that every training has, and those of pre-training."""

from pydantic import Field, model_validator

from mim_bench.schema import Beta, Frozen


class ScheduleConfig(Frozen):
    """Length, batch and learning rate; shared by every kind of training here."""

    epochs: int = Field(default=800, ge=0, le=1_000_000)
    """Passes over the training images."""
    batch_size: int = Field(default=4096, ge=1, le=1_000_000)
    """Images a step, over all devices and accumulated parts."""
    blr: float = Field(default=1.5e-4, gt=0)
    """Base learning rate for 256 images; lr = blr * batch_size / 256."""
    min_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = Field(default=40, ge=0)
    """Epochs of linear warm-up from 0."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay; none for 1-D parameters."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Gradients are scaled down to this norm; unset: no clipping."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Parts in which the batch of a step goes through the device."""

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.blr * self.batch_size / 256

    @model_validator(mode="after")
    def _parts(self) -> "ScheduleConfig":
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"batch_size={self.batch_size} is no multiple of "
                f"accumulation_steps={self.accumulation_steps}"
            )
        return self


class PretrainConfig(ScheduleConfig):
    """Pre-training as MAE's appendix A.1, Table 8."""

    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """AdamW's betas (MAE)."""
