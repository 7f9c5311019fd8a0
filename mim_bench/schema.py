"""The base of every schema here: immutable, typed, unknown keys refused, documented field by field."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """A pydantic model that cannot be changed after it is built and that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        populate_by_name=True,
        allow_inf_nan=False,
    )


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"{value[0]:g} to {value[1]:g} is no range: the lower end comes first")
    return value


Beta = Annotated[float, Field(ge=0, lt=1)]
"""Decay rate of a running mean."""
Fraction = Annotated[float, Field(gt=0, le=1)]
"""Share of something, more than none of it."""
AreaRange = Annotated[tuple[Fraction, Fraction], AfterValidator(_rising)]
"""Least and largest area of a crop over the image's area."""
_Aspect = Annotated[float, Field(ge=0.01, le=100)]
AspectRange = Annotated[tuple[_Aspect, _Aspect], AfterValidator(_rising)]
"""Least and largest width over height."""
