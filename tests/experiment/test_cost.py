"""`cost`: figures that agree with published ones, with opened data and with a real run's files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mim_bench.config import recipe
from mim_bench.config.cells import cells
from mim_bench.config.protocol import PROTOCOLS
from mim_bench.config.resolve import load_config, validated
from mim_bench.config.source import SOURCES
from mim_bench.data.run_data import complete, open_data
from mim_bench.data.sources import open_source
from mim_bench.errors import UserError
from mim_bench.evaluate import flops
from mim_bench.experiment import cost
from mim_bench.experiment.run import execute
from mim_bench.files import read_json
from mim_bench.records.record import read
from mim_bench.targets.build import make_target

CPU = torch.device("cpu")
VIT_L = (
    "data.source=imagenet",
    "model.embed_dim=1024",
    "model.depth=24",
    "model.num_heads=16",
    "model.decoder_depth=8",
    "model.decoder_dim=512",
    "mask.ratio=0.75",
)
ALL = "evaluate.protocols=" + ",".join(PROTOCOLS)


def of(target="pixel", preset="tiny", *overrides):
    return cost.estimate(load_config(target, preset, overrides))


def test_vit_b__has_the_flops_that_its_paper_prints():
    # ViT-B/16 at 224 px: 17.6 G multiplications with their additions (MAE's and timm's tables)
    asked = ("evaluate.protocols=finetune", "finetune.holdout_fraction=0")
    base, longer = (of("pixel", "imagenet", *asked, f"finetune.epochs={n}") for n in (1, 2))
    seen = 1_281_167 // 1024 * 1024
    step = (longer.protocol_flops["finetune"] - base.protocol_flops["finetune"]) / seen
    assert step / 3 == pytest.approx(35.1e9, rel=0.03)
    forward = (base.protocol_flops["finetune"] - seen * step) / 50_000
    assert forward == pytest.approx(35.1e9, rel=0.03)


def test_mae_vit_b__step_is_that_of_the_architecture_counted_by_hand():
    """MAE, ViT-B/16, 224 px, 75 % hidden: 9.7 G multiplications with their additions forward."""

    def blocks(depth, tokens, width):  # qkv, projection and MLP; scores and their weighted sum
        return depth * (2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width)

    patches, hidden, pixels = 196, 147, 16 * 16 * 3
    visible = patches - hidden
    projection = 2 * visible * pixels * 768
    encoder = blocks(12, 1 + visible, 768) + 2 * (1 + visible) * 768 * 512  # and to the decoder
    decoder = blocks(8, 1 + patches, 512) + 2 * hidden * 512 * pixels
    forward = projection + encoder + decoder
    found = flops.masked(cost.sized(load_config("norm_pixel", "imagenet")))
    assert found.forward == forward == pytest.approx(2 * 9.7e9, rel=0.005)
    assert found.step == 3 * forward - projection  # images need no gradient


def test_mask_tokens_in_the_encoder__cost_what_mae_table_1c_prints():
    # Printed: 3.3. Forward and backward of the whole model give 3.25, the same as forward alone. The printed
    # figure is that of patch tokens without the class token (196 and 49 for 197 and 50): 3.28.
    without, beside = (
        flops.step(cost.sized(load_config("pixel", "imagenet", [*VIT_L, f"model.mask_tokens={m}"])))
        for m in ("decoder", "encoder")
    )
    assert beside / without == pytest.approx(3.3, abs=0.1)

    def blocks(depth, tokens, width):
        return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)

    decoder = blocks(8, 196, 512)
    printed = (blocks(24, 196, 1024) + decoder) / (blocks(24, 49, 1024) + decoder)
    assert round(printed, 1) == 3.3


def test_pretrain_flops__grow_with_epochs_and_count_whole_batches():
    once, twice = of("pixel", "tiny", "pretrain.epochs=1"), of("pixel", "tiny", "pretrain.epochs=2")
    assert twice.pretrain_flops == 2 * once.pretrain_flops
    assert once.pretrain_flops % (10_000 // 32 * 32) == 0
    assert once.protocol_flops == twice.protocol_flops


def test_fewer_visible_patches__cost_less():
    flops = [of("pixel", "tiny", f"mask.ratio={r}").pretrain_flops for r in (0.25, 0.5, 0.75)]
    assert flops == sorted(flops, reverse=True) and len(set(flops)) == 3


def test_features__are_counted_in_the_first_protocol_that_asks():
    knn = of("pixel", "tiny", "evaluate.protocols=knn,linear,low_shot").protocol_flops
    linear = of("pixel", "tiny", "evaluate.protocols=linear,knn").protocol_flops
    assert knn["low_shot"] == 0
    assert knn["knn"] > 0 and knn["linear"] > 0
    assert sum(linear.values()) == knn["knn"] + knn["linear"]


def test_augmented_probe__encodes_every_epoch_on_both_encoders():
    overrides = ["evaluate.protocols=linear", "linear.solver=lars", "linear.augment=true"]
    one, two = (
        of("pixel", "tiny", *overrides, f"linear.epochs={n}", "linear.warmup_epochs=0")
        for n in (1, 2)
    )
    features = of("pixel", "tiny", "evaluate.protocols=low_shot").protocol_flops["low_shot"]
    epoch = two.protocol_flops["linear"] - one.protocol_flops["linear"]
    assert epoch == pytest.approx(features * 10 / 12, rel=0.01)  # low_shot has a control too


def test_partial__costs_more_the_more_is_trained_and_less_than_all():
    def flops(blocks):
        return of(
            "pixel", "tiny", "evaluate.protocols=partial", f"partial.blocks={blocks}"
        ).protocol_flops["partial"]

    whole = of("pixel", "tiny", "evaluate.protocols=finetune").protocol_flops["finetune"]
    found = [flops(blocks) for blocks in ("0.5", "1", "2", "3")]
    assert found == sorted(found) and len(set(found)) == 4
    assert whole / 3 < found[0] and found[-1] < whole
    assert flops("1,2") == found[1] + found[2]
    assert flops("3,4") == found[3]  # the encoder's depth: left to finetune


@pytest.mark.parametrize("preset", recipe.names("preset"))
@pytest.mark.parametrize("target", recipe.names("targets"))
def test_every_target__has_a_cost_at_every_preset(target, preset):
    found = of(target, preset, ALL, "partial.blocks=0.5,1")
    assert list(found.protocol_flops) == list(PROTOCOLS)
    assert found.total_flops > found.pretrain_flops > 0
    assert found.storage_bytes > found.kept_bytes > 0


def test_fit__is_estimated_where_a_target_tells_its_passes():
    def fit(target, *overrides):
        return cost.fit_flops(load_config(target, "tiny", overrides))

    config = cost.sized(load_config("dvae", "tiny"))
    assert fit("pixel") == 0
    assert fit("dvae", "dvae.fit_epochs=5") == 5 * 3 * 10_000 * flops.target(config).forward > 0


def test_sized__equals_the_opened_data_but_for_statistics():
    config = load_config("pixel", "tiny", ["data.limit_images=200"])
    opened, known = complete(config, open_data(config, CPU)), cost.sized(config)
    assert opened.model_dump(exclude={"data": {"mean", "std"}}) == known.model_dump(
        exclude={"data": {"mean", "std"}}
    )
    source = open_source("embedded", skip_bad_images=False)
    size = SOURCES["embedded"].size
    assert size and (size.num_train_images, size.num_test_images) == (
        len(source.train),
        len(source.test),
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.evaluate_on=tune", "data.tune_fraction=0.03", "data.limit_images=350"),
        ("data.limit_images=2500",),
    ],
)
def test_number_of_images__is_that_of_the_opened_data(overrides):
    config = load_config("pixel", "tiny", overrides)
    opened, known = open_data(config, CPU), cost._data(config)
    assert known.train.num_images == opened.train.num_images
    assert known.evaluate.num_images == opened.evaluate.num_images


def test_image_size__is_asked_for_where_images_differ():
    with pytest.raises(UserError, match="data.image_size must be given"):
        cost.sized(load_config("pixel", "imagenet", ["data.image_size=none"]))
    known = cost.sized(load_config("pixel", "imagenet", ["data.image_size=112"]))
    assert known.data.image_size == (112, 112) and known.data.mean == (0.485, 0.456, 0.406)


def test_folder__is_opened_for_its_number_of_images(tmp_path):
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(6 if place.startswith("train") else 2):
            pixels = np.full((12, 20, 3), number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / place / f"{number}.png")
    overrides = [f"data.source=folder:{tmp_path}", "data.image_size=16", "pretrain.batch_size=5"]
    config = load_config("pixel", "tiny", [*overrides, "pretrain.epochs=2"])
    known = cost.sized(config)
    assert known.data.image_size == (16, 16) and known.data.in_chans == 3
    assert cost.estimate(config).pretrain_flops == 2 * 10 * flops.step(known)  # of 12 images


def test_scratch_alone__costs_no_pretraining():
    found = of("pixel", "tiny", "evaluate.protocols=scratch")
    assert found.pretrain_flops == 0 and found.kept_bytes == 0 and found.storage_bytes > 0


def test_files__are_those_of_a_real_run(small, tmp_path):
    schedule = [f"{name}.epochs=1" for name in ("pretrain", "linear", "finetune")]
    small_data = ("data.limit_images=60", "finetune.holdout_fraction=0.2", "low_shot.num_draws=1")
    shape = ("model.depth=3", "partial.blocks=0.5", "speed.steps=3", "speed.warmup_steps=1")
    config = small("pixel", *shape, *schedule, *small_data, ALL)
    folder = execute(config, out=tmp_path).folder
    files = [path for path in folder.rglob("*") if path.is_file()]
    expected = cost.estimate(config)
    assert len(files) == expected.num_files, sorted(path.name for path in files)
    weights = sum(path.stat().st_size for path in files if path.suffix == ".safetensors")
    assert weights == pytest.approx(expected.kept_bytes, rel=0.25)  # names and shapes in the header


def test_compute_of_a_run__has_target_teacher_and_fit_with_its_decoder_in_it(small, tmp_path):
    def facts(target, *overrides):
        folder = execute(small(target, "evaluate.protocols=knn", *overrides), out=tmp_path).folder
        config = validated(read_json(folder / "config.json"))
        return read_json(folder / "pretrain.json"), config

    found, config = facts("dvae", "dvae.fit_epochs=2")
    assert found["flops"] == found["images_seen"] * flops.step(config)
    encoder = flops.target(config).forward
    made = make_target(config)
    made.skip_fit()
    tokens = torch.zeros(1, *made.geometry.grid, dtype=torch.int64)
    with flops.counting() as counter:
        made.decoder.from_tokens(tokens)
    both = (encoder + counter.get_total_flops()) * config.data.limit_images
    # forward and backward of two passes, a forward pass to measure; no gradient reaches the images
    assert 0.8 * 7 * both < found["fit"]["fit_flops"] < 1.05 * 7 * both
    assert facts("ema_feature")[0]["flops"] > 1.3 * facts("pixel")[0]["flops"]


def test_equal_compute__is_equal_at_its_preset():
    """Target, pre-training and the fit, as the committed records measured it, together within 3 %."""
    folder = Path(__file__).parents[2] / "results/targets/small/records"
    fitted = read(min(folder.glob("dvae-*__linear.json"))).pretrain
    assert fitted is not None
    totals = {}
    for cell in cells("equal_compute", "small"):
        if cell.config.seed == 0:
            config = cost.sized(cell.config)
            seen = (
                config.pretrain.epochs
                * (50_000 // config.pretrain.batch_size)
                * config.pretrain.batch_size
            )
            totals[cell.label] = seen * flops.step(config)
            if config.target.name == "dvae":
                totals[cell.label] += fitted.fit["fit_flops"]
    assert len(totals) == 4
    assert max(totals.values()) < 1.03 * min(totals.values()), totals


def test_device_speed__is_sustained_and_gives_hours():
    config = load_config("pixel", "tiny", ["runtime.device=cpu", "runtime.compile=off"])
    per_s = cost.device_speed(config)
    assert 1e7 < per_s < 1e13
    assert cost.hours(3600 * per_s, per_s) == pytest.approx(1)
