"""Parquet files in the Hugging Face layout: images as encoded bytes, labels as integers.

A folder with `train*.parquet` and `test*.parquet` (or `validation*`, `val*`), any number of shards
each; without the second, 10 % of each class is split off by hash. Columns: `img` or `image` (struct of
`bytes` and `path`, or plain bytes) and, optionally, `label` or `fine_label` (integers, -1 or null for
none). Files of more than 2 GiB a split are first converted, once, to Arrow files in the cache folder,
which are then mapped into memory instead of being read into it.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mim_bench.data.decode import decode
from mim_bench.data.folder import HELD_OUT, SPLIT_OFF, Opened, fingerprint_files
from mim_bench.data.image_set import ImageSet, hold_out
from mim_bench.data.resample import Image8
from mim_bench.data.torchvision_sets import cache_folder
from mim_bench.errors import UserError
from mim_bench.files import replacing

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
TEST_PREFIXES = ("test", "validation", "val")
_IN_MEMORY_BYTES = 2 << 30


def _column(schema: pa.Schema, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in schema.names), None)


def _images_only(table: pa.Table, column: str) -> pa.Table:
    """Columns `bytes` and, if there is one, `path`."""
    images = table.column(column)
    if not pa.types.is_struct(images.type):
        return pa.table({"bytes": images})
    flat = table.select([column]).flatten()
    found = [name for name in ("bytes", "path") if f"{column}.{name}" in flat.column_names]
    return pa.table({name: flat.column(f"{column}.{name}") for name in found})


class ParquetSet(ImageSet):
    """The rows of some Parquet files. Fingerprint: `folder.fingerprint_files`, file names left out."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self._fingerprint = ""
        self._table: pa.Table | None = None
        try:
            schemas = [pq.read_schema(file) for file in files]
            self.rows = [pq.read_metadata(file).num_rows for file in files]
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{files[0].parent}: Parquet files cannot be read ({_line(error)})"
            ) from error
        schema = schemas[0]
        column = _column(schema, IMAGE_COLUMNS)
        if column is None:
            found = ", ".join(schema.names)
            raise UserError(f"{files[0]}: no column img or image; its columns: {found}")
        self.column = column
        kind = schema.field(column).type
        if pa.types.is_struct(kind):
            kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise UserError(f"{files[0]}: column {column} is {kind}, not encoded images (bytes)")
        self.labels = self._read_labels(_column(schema, LABEL_COLUMNS))
        self.class_names = _class_names(schema)

    def __len__(self) -> int:
        return sum(self.rows)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_table": None}

    def decode(self, i: int) -> Image8:
        where = self.locate(i)
        data = self._images.column("bytes")[i].as_py()
        if data is None:
            raise UserError(f"{where}: unreadable image (no bytes)")
        return decode(data, where)

    def locate(self, i: int) -> str:
        table = self._images
        name = table.column("path")[i].as_py() if "path" in table.column_names else None
        ends = np.cumsum(self.rows)
        shard = int(np.searchsorted(ends, i, side="right"))
        row = i - int(ends[shard]) + self.rows[shard]
        return f"{self.files[shard]} row {row}" + (f" ({name})" if name else "")

    def fingerprint(self) -> str:
        if not self._fingerprint:
            self._fingerprint = fingerprint_files(self.files, [""] * len(self.files))
        return self._fingerprint

    @property
    def _images(self) -> pa.Table:
        """All rows; read again in a process that got this set pickled."""
        if self._table is None:
            large = sum(file.stat().st_size for file in self.files) > _IN_MEMORY_BYTES
            load = self._mapped if large else self._loaded
            try:
                filled = [shard for shard, rows in enumerate(self.rows) if rows]
                self._table = pa.concat_tables([load(shard) for shard in filled])
            except (pa.ArrowInvalid, OSError) as error:
                folder = self.files[0].parent
                raise UserError(
                    f"{folder}: Parquet files cannot be read ({_line(error)})"
                ) from error
        return self._table

    def _loaded(self, shard: int) -> pa.Table:
        return _images_only(pq.read_table(self.files[shard], columns=[self.column]), self.column)

    def _mapped(self, shard: int) -> pa.Table:
        """A shard as an Arrow file in the cache folder, written there on first use."""
        path = cache_folder() / "arrow" / f"{self.fingerprint()[:16]}-{shard:05d}.arrow"
        if not path.exists():
            source = pq.ParquetFile(self.files[shard])
            groups = source.iter_batches(batch_size=1000, columns=[self.column])
            tables = (_images_only(pa.Table.from_batches([group]), self.column) for group in groups)
            first = next(tables)
            with (
                replacing(path) as unfinished,
                pa.OSFile(str(unfinished), "wb") as sink,
                pa.ipc.new_file(sink, first.schema) as writer,
            ):
                writer.write_table(first)
                for table in tables:
                    writer.write_table(table)
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def _read_labels(self, column: str | None) -> np.ndarray | None:
        if column is None:
            return None
        values = pa.concat_tables([pq.read_table(file, columns=[column]) for file in self.files])
        labels = values.column(column)
        if not pa.types.is_integer(labels.type):
            raise UserError(f"{self.files[0]}: column {column} is {labels.type}, not integer")
        array = pc.fill_null(labels, -1).to_numpy().astype(np.int64)
        missing = array < 0
        if missing.all():
            return None
        if missing.any():
            row = int(np.flatnonzero(missing)[0])
            raise UserError(f"{self.files[0].parent}: image {row} has no label, though others do")
        return array


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _class_names(schema: pa.Schema) -> tuple[str, ...] | None:
    """Class names of the label column, from the schema's `huggingface` metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    column = _column(schema, LABEL_COLUMNS)
    if text is None or column is None:
        return None
    try:
        names = json.loads(text)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(str(name) for name in names)


def open_parquet(name: str, path: Path | None) -> Opened:
    """Train, test, class names and split rule of a folder of Parquet files."""
    if path is None or not path.is_dir():
        raise UserError(f"{path}: no such folder")
    files = sorted(path.glob("train*.parquet"))
    if not files:
        raise UserError(f"{path}: no train*.parquet")
    train = ParquetSet(files)
    if len(train) == 0:
        raise UserError(f"{path}: no images in train*.parquet")
    for prefix in TEST_PREFIXES:
        files = sorted(path.glob(f"{prefix}*.parquet"))
        if files:
            return train, ParquetSet(files), train.class_names, f"the files {prefix}*.parquet"
    rest, held_out = hold_out(train, HELD_OUT, stream="test")
    return rest, held_out, train.class_names, SPLIT_OFF
