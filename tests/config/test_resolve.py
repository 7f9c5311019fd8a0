"""Configs: precedence, origins, names that are refused, hashes."""

import re

import pytest

from mim_bench.config import recipe
from mim_bench.config.resolve import fields, load_config, resolve
from mim_bench.config.run import IDENTITY, RunConfig
from mim_bench.errors import UserError
from mim_bench.targets.build import build_target


def test_precedence__default_preset_recipe_benchmark_command_line(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'class = "mim_bench.targets.hog:HogTarget"\ndescription = "d"\npaper = "p"\n'
        "[params]\nnum_bins = 6\n"
    )
    found = resolve(
        str(path), "tiny", ["pretrain.epochs=7"], grid={"pretrain.epochs": 5, "mask.ratio": 0.5}
    )
    config = found.config
    assert (config.pretrain.epochs, found.origin["pretrain.epochs"]) == (7, "command line")
    assert (config.mask.ratio, found.origin["mask.ratio"]) == (0.5, "benchmark")
    assert (config.target.params["num_bins"], found.origin["target.num_bins"]) == (6, "recipe mine")
    assert (config.model.embed_dim, found.origin["model.embed_dim"]) == (96, "preset tiny")
    assert (config.augment.flip, found.origin["augment.flip"]) == (0.5, "default")


@pytest.mark.parametrize("key", ["hog.num_bins", "target.num_bins", "target.params.num_bins"])
def test_target_field__has_three_spellings(key):
    assert load_config("hog", "tiny", [f"{key}=12"]).target.params["num_bins"] == 12


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.epoch=3", "nearest: pretrain.epochs"),
        ("pretrian.epochs=3", "nearest: pretrain"),
        ("pretrain.epochs=many", "pretrain.epochs='many'"),
        ("pretrain.epochs=-1", "pretrain.epochs=-1"),
        ("pretrain.epochs", "section.field=value"),
        ("hog.num_bin=3", "nearest: hog.num_bins"),
        ("num_bins=3", "nearest: hog.num_bins"),
        ("pixel.loss=l1", "'pixel' is another target's section; this one is 'hog'"),
        ("mask.sampling=blok", "nearest: block; allowed: 'random'"),
        ("hog.num_bins=none", "num_bins"),
        ("mask.ratio=1", "mask.ratio=1: allowed: greater than 0 and less than 1"),
        ("mask.ratio=0", "mask.ratio=0: allowed: greater than 0 and less than 1"),
        ("hog.num_bins=999", "allowed: greater than or equal to 2 and less than or equal to 360"),
        (
            "mask.sampling=blocks",
            "'random', 'block', 'grid', 'square', 'multi_block' or 'inverse_block'",
        ),
        ("evaluate.protocols=knn,linaer", "linaer"),
        ("model.embed_dim=97", "model.embed_dim=97 is no multiple"),
        ("data.image_size=30", "no multiple of model.patch_size=8"),
        ("pretrain.accumulation_steps=3", "no multiple of accumulation_steps=3"),
    ],
)
def test_wrong_override__is_one_line_that_names_it(override, message):
    extra = ["data.image_size=28"] if override.startswith("mask.ratio") else []
    with pytest.raises(UserError) as error:
        load_config("hog", "tiny", [override, *extra])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ratio", [0.9, 0.99])
def test_mask_ratio__must_leave_two_visible_patches(ratio):
    with pytest.raises(UserError, match=r"leaves [01] visible of 16 patches .* 0.875, so that two"):
        load_config("pixel", "tiny", [f"mask.ratio={ratio}"])


def test_none__unsets_a_field_on_the_command_line_and_in_a_preset(tmp_path):
    assert load_config("pixel", "tiny").finetune.rand_augment is None
    config = load_config("pixel", "cifar10", ["finetune.rand_augment=none"])
    assert config.finetune.rand_augment is None
    assert load_config("pixel", "cifar10").finetune.rand_augment is not None


def test_every_field__is_documented_with_its_default():
    for key in fields(RunConfig):
        section, _, name = key.partition(".")
        model = RunConfig.model_fields[section]
        info = model.annotation.model_fields[name] if name else model
        assert info.description, f"{key} has no docstring"


def test_hash__covers_what_moves_weights_and_nothing_else():
    base = load_config("pixel", "tiny")
    moved = ["seed=1", "mask.ratio=0.25", "pretrain.blr=1", "pixel.loss=l1", "augment.flip=0"]
    assert all(load_config("pixel", "tiny", [change]).hash != base.hash for change in moved)
    still = ["runtime.device=cpu", "linear.epochs=3", "evaluate.protocols=knn", "knn.k=3"]
    assert all(load_config("pixel", "tiny", [change]).hash == base.hash for change in still)
    assert set(IDENTITY) <= set(RunConfig.model_fields)


def test_config__survives_its_own_json():
    for target in recipe.names("targets"):
        config = load_config(target, "tiny")
        assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_outside_class__joins_by_recipe(tmp_path, monkeypatch):
    (tmp_path / "outside_package.py").write_text(
        "from mim_bench.targets.pixel import PixelTarget\nclass Mine(PixelTarget):\n    version = 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "mine.toml"
    path.write_text('class = "outside_package:Mine"\ndescription = "d"\npaper = "p"\n')
    assert load_config(str(path)).target.version == 7
    for wrong in ("outside_package:Other", "nowhere:Mine", "outside_package", "json:dumps"):
        path.write_text(f'class = "{wrong}"\ndescription = "d"\npaper = "p"\n')
        with pytest.raises(UserError, match="target class"):
            load_config(str(path))


def test_build_target__refuses_what_does_not_fit():
    with pytest.raises(UserError, match="nearest: hog"):
        build_target("hogg", image_size=32, patch_size=4)
    with pytest.raises(UserError, match="no multiple of patch_size"):
        build_target("hog", image_size=30, patch_size=4)
    with pytest.raises(UserError, match="bin"):
        build_target("hog", image_size=32, patch_size=4, bin=3)
    with pytest.raises(UserError, match="mean has 3 values for in_chans=2"):
        build_target("pixel", image_size=32, patch_size=4, in_chans=2)


def test_recipes_are_found__from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "chance.toml").write_text("class = 'x'")
    monkeypatch.chdir(tmp_path)
    assert "hog" in recipe.names("targets") and "chance" not in recipe.names("targets")


def test_preset__as_a_setting_is_refused():
    with pytest.raises(UserError, match="preset=imagenet is no setting; use --preset imagenet"):
        load_config("hog", "tiny", ["preset=imagenet"])


NUMBERS = [
    "pretrain.blr", "pretrain.weight_decay", "pretrain.min_lr", "pretrain.clip_norm", "model.mlp_ratio",
    "knn.temperature", "low_shot.c", "finetune.mixup", "runtime.memory_gb", "runtime.timeout_minutes",
    "data.std", "data.mean", "augment.crop_ratio", "low_shot.fractions", "partial.blocks",
]  # fmt: skip


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_numbers__are_finite(field, value):
    count = 2 if field == "augment.crop_ratio" else 1
    with pytest.raises(UserError, match=rf"{field}.*allowed: a finite number"):
        load_config("hog", "tiny", [f"{field}={','.join([value] * count)}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.std=0", "data.std.0='0': allowed: greater than 0"),
        ("data.image_size=0", "allowed: greater than or equal to 1"),
        ("data.image_size=-32", "allowed: greater than or equal to 1"),
        ("augment.crop_scale=1,0.2", "augment.crop_scale: 1 to 0.2 is no range"),
        ("finetune.crop_scale=2,3", "allowed: less than or equal to 1"),
        ("augment.crop_ratio=0,1", "allowed: greater than or equal to 0.01"),
        ("pretrain.betas=0.9", "pretrain.betas=['0.9']"),
        ("pretrain.betas=2,3", "allowed: less than 1"),
        ("low_shot.fractions=2", "allowed: less than or equal to 1"),
        ("low_shot.fractions=none", "low_shot.fractions=[]"),
        ("partial.blocks=none", "partial.blocks=[]"),
        ("finetune.rand_augment=garbage", "such as rand-m9-mstd0.5-inc1"),
        ("evaluate.protocols=knn,knn", "names knn twice"),
        ("model.depth=2147483648", "model.depth"),
        (
            "model.decoder_depth=0",
            "no gradient of a hidden patch reaches the encoder; allowed: 1 or more",
        ),
        ("target.num_bins=100000", "num_bins"),
        ("runtime.device=cuda:1", "CUDA_VISIBLE_DEVICES=1"),
    ],
)
def test_impossible_value__is_refused_before_anything_runs(override, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_config("hog", "tiny", [override])


def test_protocol_that_cannot_run__is_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"partial.blocks=12 or more of model.depth"):
        load_config("hog", "tiny", ["partial.blocks=12,18", "evaluate.protocols=partial"])
    with pytest.raises(UserError, match="works on 1 or 3 channels, these images have 2"):
        load_config("hog", "cifar10", ["data.in_chans=2", "evaluate.protocols=finetune"])


def test_none__is_an_empty_list_of_protocols():
    assert load_config("hog", "tiny", ["evaluate.protocols=none"]).evaluate.protocols == ()


def test_control_characters__reach_no_file_terminal_or_page(tmp_path):
    with pytest.raises(UserError, match="holds a control character"):
        load_config("hog", "tiny", ["data.source=folder:a\x1b[2J"])
    (tmp_path / "mine.toml").write_text(
        'class = "a:B"\npaper = "p"\ndescription = "one\\nand more"\n'
    )
    with pytest.raises(UserError, match=r"mine\.toml: text, .*holds a control character"):
        load_config(str(tmp_path / "mine.toml"), "tiny")
