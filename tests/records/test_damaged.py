"""Files of a run and records, damaged in every way that disks and people have: a named refusal each, never a page."""

import io
import json
import os
import shutil
import zipfile

import numpy as np
import pytest

from mim_bench.analysis.validate import validate
from mim_bench.config.resolve import load_config
from mim_bench.errors import UserError
from mim_bench.evaluate.load_encoder import load_encoder
from mim_bench.experiment.run import execute
from mim_bench.records.record import read, read_correct
from mim_bench.records.run_folder import read_manifest

DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "empty": lambda path: path.write_bytes(b""),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "link to nothing": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "hole": lambda path: os.truncate(path, 6 << 30),
}

ABSENT = ("pipe", "link to nothing")
"""Damage after which a file that says that something is finished is not there: it is made anew."""


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs that differ in their seed."""
    from conftest import SMALL

    out = tmp_path_factory.mktemp("runs")
    return [execute(load_config("pixel", "tiny", [*SMALL, "evaluate.protocols=knn", f"seed={seed}"]), out=out).folder
            for seed in (0, 1)]  # fmt: skip


@pytest.fixture
def copied(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "out" / runs[0].name)
    return tmp_path / "out" / runs[0].name


def again(folder):
    from mim_bench.records.run_folder import read_config

    return execute(read_config(folder), out=folder)


def test_weights__are_written_as_the_umask_says_and_listed_with_their_hash(runs):
    mask = os.umask(0)
    os.umask(mask)
    assert (runs[0] / "encoder.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
    listed = read_manifest(runs[0])["artefacts"]
    assert set(listed) == {
        "encoder.safetensors",
        "model.safetensors",
        "pretrain.json",
        "picture.png",
    }
    assert again(runs[0]).was_finished


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name", ["encoder.safetensors", "model.safetensors", "pretrain.json", "records/knn.npz"]
)
def test_damaged_file__is_named_by_whoever_uses_it(copied, name, damage):
    DAMAGES[damage](copied / name)
    if name == "pretrain.json" and damage in ABSENT:
        assert not again(copied).was_finished and (copied / name).is_file()
        return
    with pytest.raises(UserError, match=name.rpartition("/")[2]) as error:
        again(copied)
    assert "\n" not in str(error.value)
    if name == "encoder.safetensors":
        with pytest.raises(UserError, match=name):
            load_encoder(copied)
    if not name.startswith("records"):
        faults = validate(copied.parent.parent / "results", copied.parent, verify=True)[1]
        assert any(name in fault for fault in faults)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["records/knn.json", "manifest.json", "config.json"])
def test_damaged_json__is_named(copied, name, damage):
    before = (copied / name).read_bytes()
    DAMAGES[damage](copied / name)
    if name == "records/knn.json" and damage in ABSENT:
        assert not again(copied).was_finished and (copied / name).is_file()
        return
    if damage == "flipped" and (copied / name).read_bytes() != before:
        pytest.skip("a letter of a string may turn into another")
    with pytest.raises(UserError) as error:
        if name == "config.json":
            load_encoder(copied)
        else:
            again(copied)
    assert name.rpartition("/")[2] in str(error.value) and "\n" not in str(error.value)


def test_encoder_of_another_run__is_refused(runs, copied):
    shutil.copyfile(runs[1] / "encoder.safetensors", copied / "encoder.safetensors")
    for use in (again, load_encoder):
        with pytest.raises(UserError, match="damaged or of another run"):
            use(copied)


def test_correctness__belongs_to_its_record(copied):
    path = copied / "records" / "knn.json"
    right = read_correct(path)
    arrays = path.with_suffix(".npz")
    with np.load(arrays) as file:
        moved = {key: np.packbits(np.roll(right[key], 1)) for key in file.files}
    np.savez_compressed(arrays, **moved)  # as many right as before, but other images
    with pytest.raises(UserError, match="its sha256 differs"):
        read_correct(path)


def test_archive_that_unpacks_to_gigabytes__is_not_unpacked(copied):
    path = copied / "records" / "knn.json"
    content = path.read_text()
    sha256 = read(path).correct_sha256
    older = json.loads(content) | {"sha256": None, "correct_sha256": None}
    assert sha256 is not None
    path.write_text(json.dumps(older))  # as records were before they had hashes
    with (
        zipfile.ZipFile(path.with_suffix(".npz"), "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as file,
    ):
        for _ in range(300):
            file.write(bytes(1 << 20))
    with pytest.raises(UserError, match="bytes unpacked, at most"):
        read_correct(path)
    buffer = io.BytesIO()
    np.savez(buffer, **{key: np.zeros(3, object) for key in ("last/patch_mean",)})
    path.with_suffix(".npz").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="cannot be read"):
        read_correct(path)


def test_what_a_kill_leaves__is_gone_after_the_next_run(copied):
    left = [copied / ".model.safetensors.123.tmp", copied / "records" / ".knn.npz.7.tmp"]
    for path in left:
        path.touch()
    for name in ("knn", "pretrain"):  # checkpoints of what has finished
        (copied / name).mkdir()
        (copied / name / "step-000000001.safetensors").touch()
    assert again(copied).was_finished
    assert not any(path.exists() for path in (*left, copied / "knn", copied / "pretrain"))
