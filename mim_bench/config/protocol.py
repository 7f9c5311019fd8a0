"""Protocols by name: what each one reports and needs. `mim_bench.evaluate.protocols` runs them.

Records, tables, figures, status and cost read the spec, so a protocol from outside the package gets a column, a
difference and a panel from its spec alone. It joins by an entry point of the group `mim_bench.protocols` that names
its `ProtocolSpec`. Only what a few built-in protocols have of their own is looked up by name: the FLOPs of those that
train (`mim_bench.experiment.cost`), rows of baselines and columns of cost (`mim_bench.analysis.row`).
"""

import logging
from collections.abc import Iterator, MutableMapping
from importlib.metadata import entry_points
from typing import Annotated

from pydantic import AfterValidator, Field

from mim_bench.errors import suggest
from mim_bench.schema import Frozen

_logger = logging.getLogger(__name__)


class ProtocolSpec(Frozen):
    """One way to evaluate a run."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    description: str
    """One line for `list protocols`."""
    version: int = Field(default=1, ge=1)
    """Raised by every change that can move a score."""
    function: str
    """`module:function` of `EvalContext -> ProtocolResult`; imported when it runs."""
    sections: tuple[str, ...] = ()
    """Sections of the config that it reads, next to the run's identity."""
    has_control: bool = False
    """True if the encoder at its random initial weights is evaluated too."""
    needs_encoder: bool = True
    """False if no pre-trained weight enters."""
    exclusive: bool = False
    """True if other work on the machine would falsify its numbers."""
    depends_on_target: bool = False
    """True if its numbers depend on the target, but on no other setting of a benchmark's grid."""
    has_readouts: bool = False
    """True if its numbers belong to readouts, one of which is the declared one."""
    heading: str = ""
    """Heading of its column; by default its name."""
    baseline_readout: str = ""
    """Readout of its records that is raw pixels, evaluated alike; it stands in their row."""
    column: str = ""
    """Protocol in whose column its numbers stand; by default its own."""
    is_compared: bool = True
    """True if tables print its differences to the reference row."""
    panel: str = ""
    """Title of its panel in figures; empty: it has none."""

    @property
    def title(self) -> str:
        """Heading of its column without the unit."""
        return self.heading or self.name


_BUILT_IN = (
    ProtocolSpec(
        name="finetune", description="all weights trained with labels (MAE)", version=2,
        function="mim_bench.evaluate.finetune:run", sections=("finetune",),
        heading="fine-tune", panel="fine-tuning",
    ),
    ProtocolSpec(
        name="linear", description="linear probe on frozen features, converged or as MAE's", version=2,
        function="mim_bench.evaluate.linear:run", sections=("linear",),
        has_control=True, has_readouts=True, panel="linear probe",
    ),
    ProtocolSpec(
        name="attentive", description="cross-attention probe with one learned query on frozen tokens (V-JEPA)",
        function="mim_bench.evaluate.attentive:run", sections=("attentive",), has_control=True,
    ),
    ProtocolSpec(
        name="knn", description="weighted k nearest neighbours on frozen, centred features",
        version=2,
        function="mim_bench.evaluate.knn:run", sections=("knn",),
        has_control=True, has_readouts=True, heading="kNN",
    ),
    ProtocolSpec(
        name="low_shot",
        description="logistic regression on frozen features from 1 % and 10 % of the labels",
        version=2, function="mim_bench.evaluate.low_shot:run", sections=("low_shot",),
        has_control=True, has_readouts=True, heading="low-shot",
    ),
    ProtocolSpec(
        name="segment",
        description="linear classifier on frozen patches, mean IoU, on images with masks",
        version=2, function="mim_bench.evaluate.segment:run", sections=("segment",),
        has_control=True, heading="mIoU", baseline_readout="pixels/patches", is_compared=False,
    ),
    ProtocolSpec(
        name="partial",
        description="the last blocks trained with labels, the rest frozen (MAE Fig. 9)",
        function="mim_bench.evaluate.partial:run", sections=("finetune", "partial"),
    ),
    ProtocolSpec(
        name="scratch", description="supervised training from random weights, by its own recipe (MAE Table 11)",
        version=3, function="mim_bench.evaluate.scratch:run", sections=("scratch",),
        needs_encoder=False, column="finetune",
    ),
    ProtocolSpec(
        name="scratch_flops",
        description="the same, for the FLOPs that the run's pre-training and fine-tuning take together",
        function="mim_bench.evaluate.scratch:run_equal_flops", sections=("scratch", "finetune", "pretrain"),
        needs_encoder=False, column="finetune", heading="scratch at equal FLOPs",
    ),
    ProtocolSpec(
        name="baselines",
        description="raw pixels, PCA at the encoder's width and the target itself as fixed features",
        function="mim_bench.evaluate.baselines:run", sections=("linear", "knn"),
        needs_encoder=False, depends_on_target=True, is_compared=False,
    ),
    ProtocolSpec(
        name="speed",
        description="time, memory and FLOPs of the pre-training step; nothing is trained",
        function="mim_bench.evaluate.speed:run", sections=("speed",),
        needs_encoder=False, exclusive=True, is_compared=False,
    ),
)  # fmt: skip


class _Protocols(MutableMapping[str, ProtocolSpec]):
    """Specs by name; those that installed packages name join when the first one is looked up.

    Not at import: a package's spec may stand in the module of its function, which imports this package.
    """

    def __init__(self, specs: dict[str, ProtocolSpec]) -> None:
        self._specs, self._is_complete = specs, False

    def _all(self) -> dict[str, ProtocolSpec]:
        if not self._is_complete:
            self._is_complete = True
            for spec in _outside():
                self._specs.setdefault(spec.name, spec)
        return self._specs

    def __getitem__(self, name: str) -> ProtocolSpec:
        return self._all()[name]

    def __setitem__(self, name: str, spec: ProtocolSpec) -> None:
        self._all()[name] = spec

    def __delitem__(self, name: str) -> None:
        del self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def _outside() -> Iterator[ProtocolSpec]:
    """Specs that installed packages name; one that cannot be loaded is reported, not fatal."""
    for entry in entry_points(group="mim_bench.protocols"):
        try:
            spec = ProtocolSpec.model_validate(entry.load())
        except Exception as error:
            _logger.warning(
                "protocol '%s' of %s cannot be loaded: %s", entry.name, entry.value, error
            )
        else:
            yield spec


PROTOCOLS = _Protocols({spec.name: spec for spec in _BUILT_IN})
"""Protocols by name, in the order of their columns."""


def _known(name: str) -> str:
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol '{name}'; {suggest(name, PROTOCOLS)}")
    return name


ProtocolName = Annotated[str, AfterValidator(_known)]
"""Name of a protocol in `PROTOCOLS`."""
