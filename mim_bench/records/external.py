"""What a record keeps of an encoder that is evaluated as it is found."""

from typing import Literal

from mim_bench.schema import Frozen


class ExternalFacts(Frozen):
    """An encoder that is evaluated as it is found, outside of every closed comparison."""

    division: Literal["external"] = "external"
    source: str
    """Path of the file, or `timm:NAME`."""
    sha256: str
    """Of the file, or of all tensors of timm's."""
    md5: str = ""
    """Of the file: publishers give its first digits; empty for timm's."""
    family: str
    """Whose weights they are, as `inspect` prints it."""
    paper: str
    architecture: str
    """What was built for them, in words."""
    conversion: str
    """Tensors matched, missing, unexpected, left out."""
    notes: tuple[str, ...]
    """What was done to them, such as an interpolated position table."""
    mean: tuple[float, ...]
    """Per channel, of images in [0, 1]: how its input was normalised."""
    std: tuple[float, ...]
    statistics_from: str
    """What says so."""
    readouts: tuple[str, ...]
    """Evaluated ones."""
