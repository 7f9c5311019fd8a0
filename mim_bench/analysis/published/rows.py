"""Published numbers; `reason.py` compares their settings.

`rows.csv` is cut by `tools/cut_published.py`; `controlled.csv` was typed from public texts: comparisons in which
(nearly) only the target or the mask changes; `checkpoints.csv` has what was published of weights that can be had.
"""

import csv
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from mim_bench.errors import UserError, suggest
from mim_bench.schema import Frozen

FILE = Path(__file__).with_name("rows.csv")
CONTROLLED = FILE.with_name("controlled.csv")
CHECKPOINTS = FILE.with_name("checkpoints.csv")


class PublishedRow(Frozen):
    """One published number and its setting; an empty column is None."""

    table_id: str
    table_title: str
    method: str
    target: str | None
    backbone: str | None
    image_size: int | None
    pretrain_data: str | None
    pretrain_epochs: int | None
    """0: trained from scratch."""
    mask_sampling: str | None
    mask_ratio: float | None
    decoder_depth: int | None
    """Blocks; 0: a light head on the encoder."""
    decoder_width: int | None
    variant: str | None
    """Setting that distinguishes the row inside its table."""
    protocol: Literal["finetune", "linear", "knn", "partial-k", "speed", "other"]
    metric: str
    """`top1` is of ImageNet-1K unless it names other data."""
    value: float
    """Accuracies in per cent."""
    paper: str
    locator: str
    source: str
    """Source in which the number was read."""
    status: Literal["confirmed", "inferred", "derived", "partly confirmed", "second-hand"]
    checkpoint: str | None = None
    """Names of the very weights, separated by spaces: `md5:` and the digits that were published, or timm's name."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_none(cls, content: Any) -> Any:
        return {key: None if value == "" else value for key, value in content.items()}

    @property
    def cite(self) -> str:
        """`MAE, Table 1a`; what no paper printed says so."""
        unofficial = ", unofficial" * ("unofficial" in f"{self.table_title} {self.variant}")
        return f"{self.paper.partition(':')[0]}, {self.locator}{unofficial}"

    @property
    def origin(self) -> str:
        """Paper or repository that printed it; the rest of `paper` may say that it quotes another."""
        return re.split(r": | \(", self.paper)[0]

    def shown(self, decimals: int = 1) -> str:
        """The value as text; followed by its status where that is not confirmed."""
        text = f"{self.value:.{decimals}f}"
        return text if self.status == "confirmed" else f"{text} ({self.status})"


@functools.cache
def _all_rows() -> tuple[PublishedRow, ...]:
    rows: list[PublishedRow] = []
    for path in (FILE, CONTROLLED, CHECKPOINTS):
        with path.open(encoding="utf-8", newline="") as file:
            rows += [PublishedRow.model_validate(row) for row in csv.DictReader(file)]
    return tuple(rows)


def rows(tables: Sequence[str]) -> list[PublishedRow]:
    """The rows of some tables, in the file's order."""
    known = {row.table_id for row in _all_rows()}
    for table in tables:
        if table not in known:
            raise UserError(f"unknown published table '{table}'; {suggest(table, known)}")
    return [row for row in _all_rows() if row.table_id in tables]
