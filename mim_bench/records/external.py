"""Facts of an encoder from outside that is evaluated without pre-training it."""

from typing import Literal

from mim_bench.schema import Frozen


class ExternalFacts(Frozen):
    """An encoder that is evaluated as it is found, outside of every closed comparison."""

    division: Literal["external"] = "external"
    source: str
    """Path of the file, or `timm:NAME`."""
    sha256: str
    """SHA-256 of the file, or of all tensors of a model that timm made."""
    md5: str = ""
    """MD5 of the file, of which publishers give the first digits; empty for a model that timm made."""
    family: str
    """Whose weights they are, as `inspect` prints it."""
    paper: str
    architecture: str
    """Architecture that was built for the tensors, in words."""
    conversion: str
    """Tensors matched, missing, unexpected, left out."""
    notes: tuple[str, ...]
    """Conversions of the tensors, such as an interpolated position table."""
    mean: tuple[float, ...]
    """Per channel, of images in [0, 1]: how its input was normalised."""
    std: tuple[float, ...]
    statistics_from: str
    """Source of the mean and standard deviation."""
    readouts: tuple[str, ...]
    """Evaluated ones."""
