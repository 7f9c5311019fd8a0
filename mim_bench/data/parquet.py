"""Parquet files in the Hugging Face layout: images as encoded bytes, labels as integers.

A folder with `train.parquet` or `train-00000-of-00002.parquet` and the like, and the same of `test` (or another
split name of `mim_bench.data.folder`), or with a folder of shards a split; PATH/data serves too. Of several
splits to evaluate on the first with labels is taken; without any, 10 % of each class is split off by hash.
Columns: `img` or `image` (struct of `bytes` and `path`, or plain bytes) and, optionally, one of
`LABEL_COLUMNS` (integers or words; -1 or null for none). Files of more than 2 GiB a split are first converted,
once, to Arrow files in the cache folder, which are then mapped into memory instead of being read into it.
"""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mim_bench.data.decode import decode
from mim_bench.data.folder import (
    HELD_OUT,
    SPLIT_OFF,
    TEST_NAMES,
    TRAIN_NAMES,
    Opened,
    existing_folder,
    file_size,
    fingerprint_files,
    first_labelled,
)
from mim_bench.data.image_set import ImageSet, hold_out
from mim_bench.data.resample import Image8
from mim_bench.data.torchvision_sets import cache_folder
from mim_bench.errors import UserError
from mim_bench.files import replacing

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels", "target", "class", "coarse_label")
_SPLIT = re.compile(rf"({'|'.join((*TRAIN_NAMES, *TEST_NAMES))})(?:[-_.]?\d.*)?", re.IGNORECASE)
_logger = logging.getLogger(__name__)
_IN_MEMORY_BYTES = 2 << 30


def _column(schema: pa.Schema, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in schema.names), None)


def _images_only(table: pa.Table, column: str) -> pa.Table:
    """Columns `bytes` and, if there is one, `path`."""
    images = table.column(column)
    if not pa.types.is_struct(images.type):
        return pa.table({"bytes": images})
    flat = table.select([column]).flatten()
    fields = [name for name in ("bytes", "path") if f"{column}.{name}" in flat.column_names]
    return pa.table({name: flat.column(f"{column}.{name}") for name in fields})


class ParquetSet(ImageSet):
    """The rows of some Parquet files. Fingerprint: `folder.fingerprint_files`, file names left out."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self._fingerprint = ""
        self._table: pa.Table | None = None
        self._lengths: np.ndarray | None = None
        if odd := [file for file in files if file_size(file) < 0]:
            raise UserError(f"{odd[0]}: no regular file")
        try:
            schemas = [pq.read_schema(file) for file in files]
            self.rows = [pq.read_metadata(file).num_rows for file in files]
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{files[0].parent}: Parquet files cannot be read ({_line(error)})"
            ) from error
        self.columns = [
            _image_column(file, schema) for file, schema in zip(files, schemas, strict=True)
        ]
        self.labels = self._read_labels([_column(schema, LABEL_COLUMNS) for schema in schemas])
        self.class_names = _class_names(schemas[0])

    def __len__(self) -> int:
        return sum(self.rows)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_table": None, "_lengths": None}

    def decode(self, i: int) -> Image8:
        location = self.locate(i)
        data = self._images.column("bytes")[i].as_py()
        if data is None:
            raise UserError(f"{location}: unreadable image (no bytes)")
        return decode(data, location)

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
                tables = [load(shard) for shard in filled]
                self._table = pa.concat_tables(tables, promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
                folder = self.files[0].parent
                raise UserError(
                    f"{folder}: Parquet files cannot be read ({_line(error)})"
                ) from error
        return self._table

    def _loaded(self, shard: int) -> pa.Table:
        column = self.columns[shard]
        return _images_only(pq.read_table(self.files[shard], columns=[column]), column)

    def _mapped(self, shard: int) -> pa.Table:
        """A shard as an Arrow file in the cache folder, written there on first use."""
        path = cache_folder() / "arrow" / f"{self.fingerprint()[:16]}-{shard:05d}.arrow"
        if not path.exists():
            source = pq.ParquetFile(self.files[shard])
            column = self.columns[shard]
            groups = source.iter_batches(batch_size=1000, columns=[column])
            tables = (_images_only(pa.Table.from_batches([group]), column) for group in groups)
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

    def content_size(self, i: int) -> int | None:
        if self._lengths is None:
            lengths = pc.call_function("binary_length", [self._images.column("bytes")])
            self._lengths = pc.fill_null(lengths, -1).to_numpy()
        assert self._lengths is not None
        return int(self._lengths[i])

    def content(self, i: int) -> bytes:
        return self._images.column("bytes")[i].as_py() or b""

    def _read_labels(self, columns: list[str | None]) -> np.ndarray | None:
        """(N,) integers or words as they are stored; None where no image has a label."""
        pairs = zip(self.files, columns, self.rows, strict=True)
        parts = [_labels(file, column, rows) for file, column, rows in pairs]
        if all(part is None for part in parts):
            return None
        for file, part in zip(self.files, parts, strict=True):
            if part is None:
                raise UserError(f"{file}: no labels, though other shards of the split have them")
            if part.dtype.kind != next(p.dtype.kind for p in parts if p is not None):
                raise UserError(f"{file}: labels are words in one shard and numbers in another")
        return np.concatenate([part for part in parts if part is not None])


def _labels(file: Path, column: str | None, num_rows: int) -> np.ndarray | None:
    """Labels of one shard; None if it has none, UserError if only some of its images have one."""
    if column is None:
        return None
    labels = pq.read_table(file, columns=[column]).column(column).combine_chunks()
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if pa.types.is_boolean(labels.type):
        labels = labels.cast(pa.int64())
    label_type = labels.type
    is_word = pa.types.is_string(label_type) or pa.types.is_large_string(label_type)
    if pa.types.is_floating(label_type):  # pandas turns integers with gaps into floats
        labels = labels.cast(pa.float64()).fill_null(float("nan"))
    elif not (is_word or pa.types.is_integer(label_type) or pa.types.is_null(label_type)):
        raise UserError(f"{file}: column {column} is {label_type}, neither integer nor string")
    values = labels.to_pylist()
    missing = [v is None or (not is_word and not v >= 0) for v in values]  # nan is not either
    if all(missing):
        return None if num_rows else np.empty(0, str if is_word else np.int64)
    if any(missing):
        raise UserError(f"{file}: image {missing.index(True)} has no label, though others do")
    if not is_word and any(value != int(value) or value >= 1 << 63 for value in values):
        raise UserError(
            f"{file}: column {column} is {label_type} with values that are no class indices"
        )
    return np.asarray(values, str if is_word else np.int64)


def _image_column(file: Path, schema: pa.Schema) -> str:
    column = _column(schema, IMAGE_COLUMNS)
    if column is None:
        column_names = ", ".join(schema.names)
        raise UserError(f"{file}: no column img or image; its columns: {column_names}")
    image_type = schema.field(column).type
    if pa.types.is_struct(image_type):
        image_type = (
            image_type.field("bytes").type
            if image_type.get_field_index("bytes") >= 0
            else image_type
        )
    if not (pa.types.is_binary(image_type) or pa.types.is_large_binary(image_type)):
        raise UserError(f"{file}: column {column} is {image_type}, not encoded images (bytes)")
    return column


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


def _split_files(path: Path) -> dict[str, list[Path]]:
    """Split name in lower case -> its shards, each real file once; other Parquet files are warned about."""
    by_split: dict[str, dict[Path, Path]] = {}
    others: list[str] = []
    for folder in (path, path / "data"):
        for entry in sorted((*folder.glob("*"), *folder.glob("*/*"))):
            in_split = entry.parent != folder and _SPLIT.fullmatch(entry.parent.name)
            named = in_split or (entry.parent == folder and _SPLIT.fullmatch(entry.stem))
            if entry.suffix.lower() != ".parquet" or entry.is_dir():
                continue
            if named:
                by_split.setdefault(named[1].lower(), {}).setdefault(entry.resolve(), entry)
            elif entry.parent == folder:
                others.append(entry.name)
        if by_split:
            break
    if others:
        _logger.warning(
            "%s: %d Parquet files of no split left out, such as %s", path, len(others), others[0]
        )
    return {name: list(files.values()) for name, files in by_split.items()}


def open_parquet(name: str, path: Path | None) -> Opened:
    """Train, test, class names and split rule of a folder of Parquet files."""
    path = existing_folder(path)
    files = _split_files(path)
    trains = [split_name for split_name in TRAIN_NAMES if split_name in files]
    if len(trains) != 1:
        fault = (
            "both train and training"
            if trains
            else "no train.parquet, nor shards such as train-0000.parquet"
        )
        raise UserError(f"{path}: {fault}")
    train = ParquetSet(files[trains[0]])
    if len(train) == 0:
        raise UserError(f"{path}: no images in {trains[0]}*.parquet")
    tests = {
        split_name: ParquetSet(files[split_name])
        for split_name in TEST_NAMES
        if split_name in files
    }
    if tests:
        labelled = {name: test.labels is not None for name, test in tests.items()}
        chosen, left_out = first_labelled(labelled)
        return train, tests[chosen], train.class_names, f"the files {chosen}{left_out}"
    remaining, held_out = hold_out(train, HELD_OUT, stream="test")
    return remaining, held_out, train.class_names, SPLIT_OFF
