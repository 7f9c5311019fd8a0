"""Cuts the embedded sample from Fashion-MNIST and checks that it is the one that is shipped.

Source: Debian's package `dataset-fashion-mnist` (MIT licence, Zalando SE 2017; `LICENSE-fashion-mnist`
beside this file). The first images of each class in the order of sha256("fashion-mnist/SPLIT/INDEX"):
1,000 of training, 200 of test, written in that order as Parquet in the Hugging Face layout.

    apt-get install dataset-fashion-mnist
    python tools/cut_embedded.py            # writes train.parquet and test.parquet here
    python tools/cut_embedded.py --check    # compares what is here, and what would be cut, by hash

The hash covers decoded pixels, labels and paths: PNG and Parquet encoders may change between versions.
"""

import argparse
import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mim_bench.data.torchvision_sets import DEBIAN, FASHION_CLASSES, find_idx, read_idx

HERE = Path(__file__).parents[1] / "mim_bench" / "data" / "embedded"
NUM_PER_CLASS = {"train": 1000, "test": 200}
CONTENT_SHA256 = {
    "train": "1c0a4c9260cb18e8c4a78fcc60816e7b87468bc10a8c1727441870b66b05ce1a",
    "test": "6b35f4cf312a59dfe51e6559705a5c69bd26a3067197651b5f2416333afdec40",
}


def chosen(split: str, labels: np.ndarray) -> list[int]:
    """Indices of the images that are kept, in their order of writing."""
    order = sorted(
        range(len(labels)),
        key=lambda i: hashlib.sha256(f"fashion-mnist/{split}/{i}".encode()).digest(),
    )
    kept: list[int] = []
    seen = dict.fromkeys(range(len(FASHION_CLASSES)), 0)
    for i in order:
        seen[int(labels[i])] += 1
        if seen[int(labels[i])] <= NUM_PER_CLASS[split]:
            kept.append(i)
    return kept


def encode(image: np.ndarray) -> bytes:
    """(H, W) uint8 -> PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    return file.getvalue()


def cut(split: str, folder: Path) -> pa.Table:
    """The sample of one split from the four idx files in `folder`."""
    images, labels = (read_idx(find_idx(folder, split, kind)) for kind in ("images", "labels"))
    kept = chosen(split, labels)
    rows = [{"bytes": encode(images[i]), "path": f"{split}/{i:05d}.png"} for i in kept]
    features = {
        "img": {"_type": "Image"},
        "label": {"names": list(FASHION_CLASSES), "_type": "ClassLabel"},
    }
    schema = pa.schema(
        {"img": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    return pa.table({"img": rows, "label": labels[kept].astype(np.int64)}, schema=schema)


def content_hash(table: pa.Table) -> str:
    """sha256 over each row's pixels, label and path."""
    content = hashlib.sha256()
    for row in table.to_pylist():
        pixels = np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])))
        content.update(f"{row['img']['path']} {row['label']} {pixels.shape}".encode())
        content.update(pixels.tobytes())
    return content.hexdigest()


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Cut or check the embedded sample.")
    parser.add_argument("--check", action="store_true", help="write nothing, compare only")
    parser.add_argument("--source", type=Path, default=DEBIAN, help="folder of the idx files")
    arguments = parser.parse_args()
    wrong = 0
    for split, expected in CONTENT_SHA256.items():
        path = HERE / f"{split}.parquet"
        table = cut(split, arguments.source)
        if not arguments.check:
            pq.write_table(table, path, row_group_size=2000, compression="zstd")
        file_hash = hashlib.sha256(path.read_bytes()).hexdigest()
        for what, content in (("cut", table), ("file", pq.read_table(path))):
            found = content_hash(content)
            wrong += found != expected
            print(f"{split} {what}: {'ok' if found == expected else 'DIFFERS'} {found}")
        print(f"{split} {path.name}: {path.stat().st_size} bytes, sha256 {file_hash}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
