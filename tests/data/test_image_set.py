"""Choosing from a set is balanced and repeatable; fingerprints follow content."""

import shutil

import numpy as np
from picture import array_set, class_folders, counts_of  # pyright: ignore[reportImplicitRelativeImport]

from mim_bench.data.image_set import Subset, hold_out, limit
from mim_bench.data.sources import open_source


def test_limit__balanced_nested_and_deterministic():
    whole = array_set(100, 5)
    few, more, again = (limit(whole, num) for num in (23, 50, 23))
    assert isinstance(few, Subset) and isinstance(more, Subset) and isinstance(again, Subset)
    assert sorted(counts_of(few)) == [4, 4, 5, 5, 5]
    assert counts_of(more) == [10] * 5
    assert set(few.positions) < set(more.positions)
    assert np.array_equal(again.positions, few.positions)
    assert limit(whole, 100) is whole


def test_hold_out__disjoint_stratified_and_seeded():
    whole = array_set(100, 5)
    rest, held = hold_out(whole, 0.1)
    assert counts_of(held) == [2] * 5
    assert sorted([*rest.positions, *held.positions]) == list(range(100))
    assert not np.array_equal(hold_out(whole, 0.1, seed=1)[1].positions, held.positions)


def test_fingerprint__follows_content_not_place(tmp_path):
    class_folders(tmp_path / "a", num=4)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    a, b = (open_source(f"folder:{tmp_path / name}").train for name in "ab")
    assert a.fingerprint() == b.fingerprint()
    changed = tmp_path / "b" / "cat" / "00.png"
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(bytes(data))
    assert open_source(f"folder:{tmp_path / 'b'}").train.fingerprint() != a.fingerprint()
    assert limit(a, 4).fingerprint() != a.fingerprint()
    first, second = array_set(10, 2), array_set(10, 5)
    assert first.fingerprint() != second.fingerprint()


def test_hold_out__one_image_a_class_is_split_as_a_whole():
    rest, held = hold_out(array_set(20, 20), 0.1)
    assert (len(rest), len(held)) == (18, 2)
