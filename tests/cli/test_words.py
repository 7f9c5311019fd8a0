"""What a new user types in the first hour: understood, or answered with the exact spelling."""

import pytest

from mim_bench.cli.options import print_table
from mim_bench.cli.words import read_words
from mim_bench.config.recipe import load_recipe
from mim_bench.config.source import source_spec
from mim_bench.errors import UserError


@pytest.mark.parametrize(
    ("words", "target", "settings"),
    [
        ("hog", "hog", []),
        ("target=hog", "hog", []),
        ("mine.toml pretrain.epochs=1", "mine.toml", ["pretrain.epochs=1"]),
        ("mask_ratio=0.6", None, ["mask.ratio=0.6"]),
        ("--mask_ratio 0.6 --mask-ratio=0.5", None, ["mask.ratio=0.6", "mask.ratio=0.5"]),
        ("--epochs 5 hog", "hog", ["pretrain.epochs=5"]),
        ("--blr 1e-4 --batch-size 8", None, ["pretrain.blr=1e-4", "pretrain.batch_size=8"]),
        ("epochs=3 embed_dim=48", None, ["pretrain.epochs=3", "model.embed_dim=48"]),
        ("--pretrain.epochs=1 seed=3", None, ["pretrain.epochs=1", "seed=3"]),
        ("k=5", None, ["knn.k=5"]),
    ],
)
def test_habit__is_understood_where_it_means_one_thing(words, target, settings):
    assert read_words(words.split()) == (target, settings)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--norm_pix_loss", "use --target norm_pixel"),
        ("--lr 1e-3", r"use pretrain.blr.*lr = blr \* batch_size / 256"),
        ("--gpu 0", "CUDA_VISIBLE_DEVICES"),
        ("--data_path /x", "--data folder:PATH"),
        ("momentums=1 crop_scale=0.1,1", "say which: augment.crop_scale, linear.crop_scale"),
        ("--presett tiny", "no option --presett"),
        ("--epochs", "a value is missing; spelled pretrain.epochs=VALUE"),
        ("pretrain.epochs = 1", "neither a setting, section.field=value"),
        ("hog pixel", "neither a setting"),
    ],
)
def test_habit__is_answered_with_the_spelling(words, answer):
    with pytest.raises(UserError, match=answer):
        read_words(words.split())


@pytest.mark.parametrize(
    ("name", "answer"),
    [("mae", "target of mae is norm_pixel"), ("BEiT", "is dvae"), ("maskfeat", "is hog"), ("SimMIM", "is pixel"),
     ("HOG", "nearest: hog"), ("norm-pixel", "nearest: norm_pixel"), ("hogg", "nearest: hog")],
)  # fmt: skip
def test_method__is_answered_with_its_target(name, answer):
    with pytest.raises(UserError, match=answer):
        load_recipe(name)


def test_file_without_its_suffix__is_named_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").touch()
    with pytest.raises(UserError, match=r"with its suffix: mine\.toml"):
        load_recipe("mine")


def test_path_as_data_source__is_answered_with_the_two_that_take_one():
    with pytest.raises(UserError, match=r"folder:/data/x, Parquet files: parquet:/data/x"):
        source_spec("/data/x")


def test_table__goes_on_below_where_the_terminal_is_narrow(capsys, monkeypatch):
    from mim_bench.cli.options import out_console

    monkeypatch.setattr(out_console, "width", 40)
    headings = ["target", *(f"column {i}" for i in range(6))]
    print_table(headings, [["[hog]", *(f"{i}.25 ± 0.1" for i in range(6))]])
    out = capsys.readouterr().out
    assert all(heading in out for heading in headings) and all(
        f"{i}.25 ± 0.1" in out for i in range(6)
    )
    assert out.count("[hog]") == 3 and max(map(len, out.splitlines())) <= 40
