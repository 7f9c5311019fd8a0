"""`stamp`: a picture tells of which records it is, and a change of any of them tells on it."""

from pathlib import Path

import pytest
from fake import fake_record
from PIL import Image

from mim_bench.config.cells import cells
from mim_bench.evaluate.picture import lay_out
from mim_bench.evaluate.picture import write as write_png
from mim_bench.records import png_stamp
from mim_bench.records.finished import pictured
from mim_bench.records.record import Record, read, write

CELLS = cells("targets", "tiny")
PROTOCOLS = ("linear", "finetune")
RECORDS = [fake_record(cell, name, 0.7)[0] for cell in CELLS[:2] for name in PROTOCOLS]


def test_stamp__is_the_same_in_any_order_and_from_a_file(tmp_path: Path) -> None:
    first = png_stamp.of_records(RECORDS)
    assert png_stamp.of_records(reversed(RECORDS)) == first
    again = []
    for number, cell in enumerate(CELLS[:2]):
        for name in PROTOCOLS:
            write(tmp_path / f"{number}{name}.json", *fake_record(cell, name, 0.7))
            again.append(read(tmp_path / f"{number}{name}.json"))
    assert png_stamp.of_records(again) == png_stamp.of_records(again[::-1])
    assert all("schema_version" in record.model_fields_set for record in again)


@pytest.mark.parametrize("part", ["metrics", "curves", "pretrain", "record_hash", "protocol"])
def test_stamp__changes_with_what_is_drawn(part: str) -> None:
    last = RECORDS[-1]
    assert last.pretrain is not None
    changes = {
        "metrics": tuple(m.model_copy(update={"value": m.value + 0.01}) for m in last.metrics),
        "curves": {"model": (0.1, 0.2)},
        "pretrain": last.pretrain.model_copy(update={"seconds": 1.0}),
        "record_hash": "0" * 64,
        "protocol": "scratch",
    }
    changed = last.model_copy(update={part: changes[part]})
    assert png_stamp.of_records([*RECORDS[:-1], changed]) != png_stamp.of_records(RECORDS)


def test_stamp__tells_a_record_that_is_missing_or_new() -> None:
    assert len({png_stamp.of_records(RECORDS[:number]) for number in range(5)}) == 5


def test_stamp__stays_when_the_schema_gains_a_field() -> None:
    class Later(Record):
        weather: str = "fair"

    later = [Later.model_validate(one.model_dump(exclude_unset=True)) for one in RECORDS]
    assert png_stamp.of_records(later) == png_stamp.of_records(RECORDS)


def test_runs__are_a_set_of_hashes() -> None:
    assert (
        png_stamp.of_runs(["b", "a", "b"])
        == png_stamp.of_runs(["a", "b"])
        != png_stamp.of_runs(["a"])
    )


def test_png__keeps_its_stamp_and_nothing_of_matplotlib(tmp_path: Path) -> None:
    import torch

    figure = lay_out([torch.zeros(2, 3, 4, 4)], 40, 40, left=2, top=2)
    write_png(figure, tmp_path / "a.png", png_stamp.metadata("of these"))
    assert png_stamp.read(tmp_path / "a.png") == "of these"
    with Image.open(tmp_path / "a.png") as image:
        assert "Software" not in image.info
    Image.new("L", (2, 2)).save(tmp_path / "b.png")
    assert png_stamp.read(tmp_path / "b.png") is None


def test_pictured__is_the_first_seed_and_of_each_target_the_first_cell() -> None:
    assert [(cell.config.seed, cell.label) for cell in pictured(CELLS)] == [
        (CELLS[0].config.seed, target) for target in ("pixel", "norm_pixel", "hog", "dvae")
    ]
    of_ratios = pictured(cells("mask_ratio", "tiny"))
    assert len(of_ratios) == 2 and len({cell.point["mask.ratio"] for cell in of_ratios}) == 1
