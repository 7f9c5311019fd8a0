"""Features of a whole data set as a Parquet file: a row an image, a column a readout.

Columns: `split`, `index`, `where` (file or row that the image is read from), `label`, `class`, and one list of float32
for each readout. The file's own metadata say which encoder it was, how its input was normalised, and which images.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mim_bench.data.split import Split
from mim_bench.errors import UserError
from mim_bench.experiment.external import Prepared, prepare
from mim_bench.files import check_folder, replacing


def embed(
    spec: str,
    preset: str,
    overrides: Sequence[str],
    out: Path,
    *,
    readouts: Sequence[str] = (),
    num_heads: int | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> int:
    """Writes the features of both splits; returns the number of rows.

    Args:
        spec: run folder, file, or `timm:NAME`.
        overrides: `section.field=value` over the preset, of which only its data count.
        out: a `.parquet` file; replaced if there.
        readouts: `LAYER/POOLING` names; by default the declared one alone.

    Raises:
        UserError: anything that the user can put right; nothing is written then.
    """
    if out.suffix != ".parquet":
        raise UserError(f"out={out}: the name of a .parquet file is needed")
    check_folder(out.parent)
    settings = [*overrides, "evaluate.protocols=[]"]
    prepared = prepare(
        spec, preset, settings, readout=",".join(readouts), num_heads=num_heads, notify=notify
    )
    names = tuple(readouts) or _declared(prepared)
    if trained := [name for name in names if name not in prepared.features.names]:
        raise UserError(f"readout '{trained[0]}' is a probe's, which has no features of its own")
    tables = [
        _table(prepared, split, names) for split in (prepared.data.train, prepared.data.evaluate)
    ]
    metadata = {
        "encoder": prepared.facts.model_dump(mode="json"),
        "data": prepared.data.facts.model_dump(mode="json"),
    }
    joined = pa.concat_tables(tables)
    joined = joined.replace_schema_metadata({"mim_bench": json.dumps(metadata)})
    with replacing(out) as temporary:
        pq.write_table(joined, temporary)
    return joined.num_rows


def _declared(prepared: Prepared) -> tuple[str, ...]:
    """The preset's declared readout, or the patches' where there is no class token."""
    declared = prepared.config.evaluate.readout
    return (declared if declared in prepared.features.names else "last/patch_mean",)


def _table(prepared: Prepared, split: Split, names: Sequence[str]) -> pa.Table:
    num, classes = split.num_images, prepared.data.facts.class_names
    labels = None if split.labels is None else split.labels.tolist()
    columns: dict[str, pa.Array] = {
        "split": pa.array([split.name] * num),
        "index": pa.array(range(num), pa.int64()),
        "where": pa.array([split.image_set.locate(i) for i in range(num)]),
        "label": pa.array(labels or [None] * num, pa.int64()),
        "class": pa.array(
            [classes[label] if classes else None for label in labels or []] or [None] * num,
            pa.string(),
        ),
    }
    for name in names:
        values = prepared.features.of(split, name).cpu()
        flat = pa.array(values.flatten().numpy(), pa.float32())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(columns)
