"""Base class of the parameters of every target."""

from typing import ClassVar

from mim_bench.schema import Frozen


class TargetParams(Frozen):
    """Parameters of one target."""

    version: ClassVar[int] = 1
    """Version of the target's class; raised by every change that can move a score."""
    depends_on_seed: ClassVar[bool] = True
    """False for a fixed function of the image: as a feature it is the same in every run."""
