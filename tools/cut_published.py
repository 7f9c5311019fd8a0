"""Cuts `rows.csv`, the published numbers that benchmarks print, from the collected table of all of them.

    python tools/cut_published.py published.csv            # writes rows.csv here
    python tools/cut_published.py --check published.csv    # says whether rows.csv is what would be cut

Lines are copied byte for byte in the source's order, all columns kept; nothing is typed by hand.
"""

import argparse
import csv
import sys
from pathlib import Path

from mim_bench.analysis.published.rows import FILE, PublishedRow
from mim_bench.errors import UserError

TABLES = (
    "mae_decoder_depth",
    "mae_decoder_width",
    "mae_mask_token",
    "mae_target",
    "mae_augmentation",
    "mae_mask_sampling",
    "mae_mask_ratio",
    "mae_schedule",
    "mae_walltime",
    "mae_comparison",
    "mae_partial_finetune",
    "mae_scratch_vs_pretrained",
    "mae_supervised_baseline",
    "mae_pixels_vs_tokens",
    "mae_linear_comparison",
    "maskfeat_target_image",
    "maskfeat_hog_norm",
    "hog_in_mae_unofficial",
    "simmim_targets",
    "cifar10_mae",
    "beit_ablation",
)
"""The tables that are carried."""


def cut(source: bytes) -> bytes:
    """The header and the lines of `TABLES`, as they are in the source.

    Raises:
        UserError: other columns, a value over several lines, or a table that the source has not.
    """
    header, *lines = source.splitlines(keepends=True)
    columns = [name for name in PublishedRow.model_fields if name != "checkpoint"]
    if _fields(header) != columns:
        raise UserError(f"the source's columns are not {', '.join(columns)}")
    kept, seen = [header], set()
    for number, line in enumerate(lines, start=2):
        fields = _fields(line)
        if len(fields) != len(columns):
            raise UserError(f"line {number} of the source has {len(fields)} values")
        if fields[0] in TABLES:
            kept.append(line)
            seen.add(fields[0])
    if missing := [table for table in TABLES if table not in seen]:
        raise UserError(f"the source has no rows of {', '.join(missing)}")
    return b"".join(kept)


def _fields(line: bytes) -> list[str]:
    return next(csv.reader([line.decode("utf-8")]), [])


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Cut or check the published rows.")
    parser.add_argument("--check", action="store_true", help="write nothing, compare only")
    parser.add_argument("source", type=Path, help="the table of all published numbers")
    arguments = parser.parse_args()
    try:
        content = cut(arguments.source.read_bytes())
    except (OSError, UnicodeDecodeError, UserError) as error:
        print(f"{arguments.source}: {error}", file=sys.stderr)
        return 2
    if not arguments.check:
        FILE.write_bytes(content)
    is_same = FILE.is_file() and FILE.read_bytes() == content
    num_rows = content.count(b"\n") - 1
    print(f"{FILE.name}: {'ok' if is_same else 'DIFFERS'}, {num_rows} rows of {len(TABLES)} tables")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
