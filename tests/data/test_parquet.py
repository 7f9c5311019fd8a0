"""Parquet in the Hugging Face layout, and one line for what can be wrong."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture import encoded, labels_of, one_line, tile  # pyright: ignore[reportImplicitRelativeImport]

from mim_bench.data import parquet as parquet_module
from mim_bench.data.sources import open_source
from mim_bench.errors import UserError


def write_parquet(
    path: Path, images: Sequence[bytes | None], labels: Sequence[int | None] | None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(images)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": pa.array(rows, kind)}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    features = {"label": {"_type": "ClassLabel", "names": ["ant", "bee"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def test_parquet__shards_labels_and_names(tmp_path):
    images = [encoded(tile(i)) for i in range(10)]
    write_parquet(tmp_path / "train-00000-of-00002.parquet", images[:6], [0, 1] * 3)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", images[6:], [0, 1] * 2)
    write_parquet(tmp_path / "validation.parquet", images[:2], [1, 0])
    source = open_source(f"parquet:{tmp_path}")
    assert source.class_names == ("ant", "bee")
    assert labels_of(source.train) == [0, 1] * 5 and labels_of(source.test) == [1, 0]
    assert all(np.array_equal(source.train.read(i), tile(i)) for i in range(10))
    assert source.train.locate(7).endswith("train-00001-of-00002.parquet row 1 (1.png)")


def test_parquet__large_files_are_mapped_with_the_same_pixels(tmp_path, monkeypatch):
    for shard in range(2):
        images = [encoded(tile(10 * shard + i)) for i in range(5)]
        write_parquet(tmp_path / f"train-{shard}.parquet", images, [0, 1, 0, 1, 0])
    monkeypatch.setattr(parquet_module, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setenv("MIM_BENCH_DATA", str(tmp_path / "cache"))
    source = open_source(f"parquet:{tmp_path}")
    assert sorted(p.suffix for p in (tmp_path / "cache" / "arrow").iterdir()) == [".arrow"] * 2
    again = pickle.loads(pickle.dumps(source.train))
    for i in range(len(again)):
        assert np.array_equal(again.read(i), source.train.read(i))


def test_parquet__without_labels(tmp_path):
    images = [encoded(tile(i)) for i in range(10)]
    write_parquet(tmp_path / "train.parquet", images, None)
    assert open_source(f"parquet:{tmp_path}").train.labels is None
    write_parquet(tmp_path / "train.parquet", images, [-1, None] * 5)
    assert open_source(f"parquet:{tmp_path}").train.labels is None


GOOD = [encoded(tile(i)) for i in range(4)]


@pytest.mark.parametrize(
    ("images", "labels", "part"),
    [
        ([], [], "no images"),
        (GOOD, [1, 1, 1, 1], "one class"),
        (GOOD, [0, 1, None, 1], "image 2 has no label"),
        ([*GOOD[:3], GOOD[3][:200]], [0, 1, 0, 1], "row 3 (3.png): unreadable image"),
        ([*GOOD[:3], None], [0, 1, 0, 1], "row 3 (3.png): unreadable image"),
    ],
)
def test_parquet__refuses_in_one_line(tmp_path, images, labels, part):
    write_parquet(tmp_path / "train.parquet", images, labels)
    write_parquet(tmp_path / "test.parquet", GOOD, [0, 1, 0, 1])
    with pytest.raises(UserError) as error:
        open_source(f"parquet:{tmp_path}")
    assert part in one_line(error)


def test_parquet__refuses_damaged_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match=r"no train\.parquet"):
        open_source(f"parquet:{tmp_path}")
    file = tmp_path / "train.parquet"
    file.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError) as error:
        open_source(f"parquet:{tmp_path}")
    assert "cannot be read" in one_line(error)
    pq.write_table(pa.table({"text": ["a"]}), file)
    with pytest.raises(UserError, match="no column img or image; its columns: text"):
        open_source(f"parquet:{tmp_path}")
    pq.write_table(pa.table({"img": ["a"]}), file)
    with pytest.raises(UserError, match="not encoded images"):
        open_source(f"parquet:{tmp_path}")


def test_parquet__unknown_test_label(tmp_path):
    write_parquet(tmp_path / "train.parquet", GOOD, [0, 1, 0, 1])
    write_parquet(tmp_path / "test.parquet", GOOD, [0, 1, 0, 2])
    with pytest.raises(UserError, match="test label 2"):
        open_source(f"parquet:{tmp_path}")
