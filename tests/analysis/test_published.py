"""Published rows: cut from the source byte for byte, shown with their status, compared by setting."""

import sys
from pathlib import Path
from typing import get_args

import cut_published  # pyright: ignore[reportMissingImports]
import pytest

from mim_bench.analysis.published import reason
from mim_bench.analysis.published import rows as published
from mim_bench.analysis.published.reason import reasons
from mim_bench.analysis.published.rows import PublishedRow, rows
from mim_bench.config.resolve import flatten, load_config
from mim_bench.errors import UserError
from mim_bench.records.provenance import Code, Device
from mim_bench.records.record import DataFacts, Metric, Record

SOURCE = Path(__file__).parents[3] / "shared" / "reference" / "published.csv"
needs_source = pytest.mark.skipif(
    not SOURCE.is_file(), reason="no shared/reference beside the checkout"
)
LARGE = ("model.embed_dim=1024", "model.depth=24", "model.num_heads=16", "evaluate.pooling=cls")
MAE_TUNING = ("finetune.epochs=50", "finetune.holdout_fraction=0")
MASKFEAT = (
    "mask.sampling=block",
    "mask.ratio=0.4",
    "mask.block_min_patches=15",
    "model.mask_tokens=encoder_light",
    "augment.crop_scale=[0.5,1.0]",
    "pretrain.epochs=300",
    "pretrain.blr=2e-4",
    "pretrain.min_lr=1e-6",
    "pretrain.warmup_epochs=30",
    "pretrain.clip_norm=0.02",
    "finetune.warmup_epochs=20",
    "finetune.layer_decay=0.65",
    "finetune.erasing=0.25",
    "finetune.holdout_fraction=0",
)
MAE_SCRATCH = ("scratch.holdout_fraction=0",)


def row(table: str, protocol: str = "linear", **setting: object) -> PublishedRow:
    """The only row of a table with these values."""
    wanted = {"protocol": protocol, **setting}
    found = [
        r for r in rows([table]) if all(getattr(r, key) == value for key, value in wanted.items())
    ]
    assert len(found) == 1
    return found[0]


def record(
    *overrides: str,
    target: str = "pixel",
    preset: str = "imagenet",
    protocol: str = "linear",
    num_train: int = 1_281_167,
    split: str = "test",
) -> Record:
    """A record that was never run."""
    config = load_config(target, preset, overrides)
    name = "images_per_s" if protocol == "speed" else "top1"
    return Record(
        run_id=config.run_id,
        run_hash=config.hash,
        record_hash="",
        target=target,
        preset=preset,
        seed=0,
        protocol=protocol,
        protocol_version=1,
        declared_readout=config.evaluate.readout,
        metrics=(Metric(name=name, readout="model", value=0.5, stderr=0, n=100),),
        control=(),
        config=config.model_dump(mode="json"),
        data=DataFacts.model_validate(
            {
                "source": config.data.source,
                "fingerprint": "",
                "split": split,
                "num_train_images": num_train,
                "num_evaluated_images": 100,
                "num_skipped_images": 0,
                "limited": False,
            }
        ),
        pretrain=None,
        code=Code(commit="0123abc", dirty=False),
        versions={},
        device=Device(kind="cpu", name="test", count=1, cpu_threads=1),
        precision="float32",
        compiled=False,
        seconds=1.0,
        started="",
        command="test",
    )


# ---- the file ----


@needs_source
def test_rows_file__is_what_the_source_says():
    source = SOURCE.read_bytes()
    assert cut_published.cut(source) == published.FILE.read_bytes()
    assert set(published.FILE.read_bytes().splitlines()) <= set(source.splitlines())


@needs_source
def test_every_row_of_the_source__fits_the_schema(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(published, "FILE", SOURCE)
    every = published._all_rows.__wrapped__()
    typed = sum(
        path.read_bytes().count(b"\n") - 1 for path in (published.CONTROLLED, published.CHECKPOINTS)
    )
    assert len(every) == SOURCE.read_bytes().count(b"\n") - 1 + typed
    statuses = get_args(PublishedRow.model_fields["status"].annotation)
    assert {r.status for r in every} == set(statuses)


def test_cut__keeps_the_carried_tables_and_nothing_else():
    content = published.FILE.read_bytes()
    header, *lines = content.splitlines(keepends=True)
    other = lines[0].replace(b"mae_decoder_depth", b"not_carried", 1)
    assert cut_published.cut(b"".join([header, other, *lines, other])) == content
    assert {line.partition(b",")[0].decode() for line in lines} == set(cut_published.TABLES)


def test_cut__refuses_a_source_without_a_table_or_with_other_columns():
    header, *lines = published.FILE.read_bytes().splitlines(keepends=True)
    without = [line for line in lines if not line.startswith(b"cifar10_mae,")]
    with pytest.raises(UserError, match="no rows of cifar10_mae"):
        cut_published.cut(b"".join([header, *without]))
    with pytest.raises(UserError, match="columns"):
        cut_published.cut(b"".join([header.replace(b",status", b",state"), *lines]))
    with pytest.raises(UserError, match="line 2 .* 21 values"):
        cut_published.cut(b"".join([header, b"more," + lines[0], *lines]))


def test_make__says_whether_the_file_is_what_it_would_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def check(source: Path) -> int:
        monkeypatch.setattr(sys, "argv", ["make", "--check", str(source)])
        return cut_published.main()

    before = published.FILE.read_bytes()
    (tmp_path / "same.csv").write_bytes(before)
    (tmp_path / "other.csv").write_bytes(before.replace(b",84.8,", b",84.7,", 1))
    assert check(tmp_path / "same.csv") == 0 and "rows.csv: ok" in capsys.readouterr().out
    assert check(tmp_path / "other.csv") == 1 and "DIFFERS" in capsys.readouterr().out
    assert published.FILE.read_bytes() == before
    assert check(tmp_path / "missing.csv") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_make__writes_what_the_check_then_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, file = published.FILE, tmp_path / "rows.csv"
    monkeypatch.setattr(cut_published, "FILE", file)
    monkeypatch.setattr(sys, "argv", ["make", "--check", str(source)])
    assert cut_published.main() == 1 and not file.exists()
    monkeypatch.setattr(sys, "argv", ["make", str(source)])
    assert cut_published.main() == 0 and file.read_bytes() == source.read_bytes()


# ---- rows ----


def test_row__is_typed_and_cited():
    shown = row("mae_decoder_depth", decoder_depth=12)
    assert (shown.value, shown.pretrain_epochs, shown.mask_ratio) == (73.3, 800, 0.75)
    assert shown.image_size == 224 and shown.variant is None
    assert shown.cite == "MAE, Table 1a"
    icarus = "IcarusWizard/MAE (GitHub)"
    assert row("cifar10_mae", "finetune", paper=icarus).cite == f"{icarus}, README Result table"


def test_rows__come_in_the_files_order():
    found = rows(["mae_target", "mae_decoder_depth"])
    assert [r.table_id for r in found] == ["mae_decoder_depth"] * 10 + ["mae_target"] * 8
    assert len(rows(cut_published.TABLES)) == published.FILE.read_bytes().count(b"\n") - 1


def test_status__is_shown_unless_confirmed():
    assert row("mae_mask_ratio", "finetune", mask_ratio=0.1).shown() == "83.2 (inferred)"
    assert row("maskfeat_hog_norm", "finetune").shown(2) == "83.60 (partly confirmed)"
    for found in rows(cut_published.TABLES):
        assert found.shown().endswith(f" ({found.status})") == (found.status != "confirmed")
    assert row("mae_target", target="PCA").shown() == "72.3"


def test_unknown_table__names_the_nearest():
    with pytest.raises(UserError, match="'mae_targets'; nearest: mae_target,"):
        rows(["mae_target", "mae_targets"])


# ---- reasons ----

PLAIN = row("mae_target", variant="default")
TUNED = row("mae_target", "finetune", variant="default")
FROM_SCRATCH = row("mae_supervised_baseline", "other", backbone="ViT-B/16")
HOG = row("maskfeat_target_image", "finetune")
SPEED = row("mae_mask_token", "speed", value=1.0)
PARTIAL = row("mae_partial_finetune", "partial-k", method="MAE", variant="k=4 blocks tuned")


@pytest.mark.parametrize(
    ("published_row", "measured"),
    [
        (PLAIN, record(*LARGE)),
        (TUNED, record(*LARGE, *MAE_TUNING, protocol="finetune")),
        (FROM_SCRATCH, record(*MAE_SCRATCH, protocol="scratch")),
        (FROM_SCRATCH, record(*MAE_SCRATCH, "mask.ratio=0.5", target="hog", protocol="scratch")),
        (HOG, record(*MASKFEAT, target="hog", protocol="finetune")),
        (SPEED, record(*LARGE, "pretrain.epochs=1", protocol="speed", num_train=1000)),
    ],
)
def test_reasons__are_none_where_nothing_differs(published_row: PublishedRow, measured: Record):
    assert reasons(published_row, measured) == {}


@pytest.mark.parametrize(
    ("override", "aspect", "text"),
    [
        ("data.image_size=[192,192]", "image size", "192 px, not 224"),
        ("data.image_size=[192,224]", "image size", "192x224 px, not 224"),
        ("pretrain.epochs=20", "epochs", "20 epochs, not 800"),
        ("mask.ratio=0.5", "mask", "random 0.5, not random 0.75"),
        ("mask.sampling=grid", "mask", "grid 0.75, not random 0.75"),
        ("model.decoder_depth=1", "decoder", "1 x 512, not 8 x 512"),
        ("model.decoder_dim=64", "decoder", "8 x 64, not 8 x 512"),
        ("model.mask_tokens=encoder", "mask tokens", "encoder, not decoder"),
        ("model.patch_size=14", "model", "ViT-L/14, not ViT-L/16"),
        ("model.depth=4", "model", "ViT 4 x 1024 / 16, not ViT-L/16"),
        ("model.num_heads=8", "model", "ViT 24 x 1024 / 16, 8 heads, not ViT-L/16"),
        ("model.mlp_ratio=2", "model", "ViT-L/16, MLP ratio 2, not ViT-L/16"),
        ("model.position=learned", "recipe", "model.position learned, not sincos"),
        ("evaluate.pooling=patch_mean", "readout", "mean of patch tokens, not class token"),
        ("evaluate.layer=middle", "readout", "class token after block 12, not class token"),
        ("pretrain.batch_size=32", "recipe", "pretrain.batch_size 32, not 4096"),
        ("pretrain.clip_norm=3", "recipe", "pretrain.clip_norm 3.0, not None"),
        ("augment.crop=none", "recipe", "augment.crop none, not random_size"),
        (
            "augment.crop_scale=[0.5,1.0]",
            "recipe",
            "augment.crop_scale (0.5, 1.0), not (0.2, 1.0)",
        ),
        ("linear.augment=false", "recipe", "linear.augment False, not True"),
        ("target.loss=l1", "target", "pixel (w/o norm), l1 loss, not pixel (w/o norm)"),
    ],
)
def test_single_difference__is_the_only_reason(override: str, aspect: str, text: str):
    assert reasons(PLAIN, record(*LARGE, override)) == {aspect: text}


@pytest.mark.parametrize("override", ["knn.k=5", "finetune.epochs=3", "mask.block_min_patches=3"])
def test_setting_that_does_not_enter__is_no_reason(override: str):
    assert reasons(PLAIN, record(*LARGE, override)) == {}


def test_data__is_named_with_what_was_used_of_it():
    def data(measured: Record) -> str:
        found = reasons(PLAIN, measured)
        assert set(found) == {"data"}
        return found["data"]

    embedded = record(*LARGE, "data.source=embedded", num_train=10_000)
    assert data(embedded) == "embedded (Fashion-MNIST sample), not ImageNet-1K"
    sample = record(*LARGE, num_train=5000)
    assert data(sample) == "ImageNet-1K, 5,000 training images, not ImageNet-1K"
    own = data(record(*LARGE, "data.source=folder:/somewhere/private"))
    assert own == "own images (folder), not ImageNet-1K"
    assert "slice of training" in data(record(*LARGE, split="tune"))
    cifar = row("cifar10_mae", "other", paper="IcarusWizard/MAE (GitHub)")
    found = reasons(cifar, record("data.source=embedded", preset="tiny", protocol="scratch"))
    assert found["data"] == "embedded (Fashion-MNIST sample), not CIFAR-10"


def test_target__is_named_with_its_tokenizer():
    tokens = row("mae_target", target="dVAE token")
    found = reasons(tokens, record(*LARGE, "dvae.vocab_size=512", target="dvae"))
    own = "dVAE token of 512 entries fitted to the run's images"
    assert found == {"target": f"{own}, not dVAE token of DALL-E"}
    assert reasons(PLAIN, record(*LARGE, target="norm_pixel")) == {
        "target": "pixel (w/ norm), not pixel (w/o norm)"
    }
    assert (
        reasons(row("mae_target", target="pixel (w/ norm)"), record(*LARGE, target="norm_pixel"))
        == {}
    )


def test_augmentation__is_read_from_the_variant():
    none = row("mae_augmentation", variant="none (center crop, no flip)")
    jitter = row("mae_augmentation", variant="crop + color jitter")
    assert reasons(none, record(*LARGE, "augment.crop=none", "augment.flip=0")) == {}
    assert set(reasons(none, record(*LARGE))) == {"recipe"}
    assert reasons(jitter, record(*LARGE, "augment.color_jitter=0.4")) == {}
    assert reasons(jitter, record(*LARGE))["recipe"] == "augment.color_jitter 0.0, not on"


def test_protocol__of_figure_9_begins_with_the_probe_and_ends_with_fine_tuning():
    ends = {"linear": "k=0 ", "finetune": "k=24 "}
    for protocol, start in ends.items():
        end = next(
            r for r in rows(["mae_partial_finetune"])
            if r.method == "MAE" and str(r.variant).startswith(start)
        )  # fmt: skip
        assert reasons(end, record(*LARGE, *MAE_TUNING, protocol=protocol)) == {}
    found = reasons(PARTIAL, record(*LARGE, *MAE_TUNING, protocol="partial"))
    assert found == {"selection": "one length, not the best of 50, 100 and 200 epochs"}
    assert reasons(PLAIN, record(*LARGE, protocol="knn")) == {"protocol": "knn, not linear"}


def test_speed__differs_by_device_and_by_what_is_timed():
    hours = row("mae_walltime", "speed", metric="hours", value=15.4)
    found = reasons(hours, record(*LARGE, protocol="speed"))
    assert found == {
        "metric": "time of a step, not hours",
        "device": "test, not 128 TPU-v3 cores",
    }


def test_published_choice_of_weights__is_named():
    with_ema = row("mae_comparison", "other", backbone="ViT-B/16")
    found = reasons(with_ema, record(*MAE_SCRATCH, protocol="scratch"))
    assert found == {"recipe": "last weights, not their moving average"}
    cifar = row("cifar10_mae", "finetune", paper="IcarusWizard/MAE (GitHub)")
    found = reasons(
        cifar, record("model.patch_size=4", preset="cifar10", protocol="finetune", num_train=50_000)
    )
    assert found["selection"] == "last epoch, not best epoch on the test set"
    assert found["loss"] == "all hidden patches, not all but one"
    assert found["readout"] == "mean of patch tokens, not class token"
    assert found["model"] == "ViT-T/4, not ViT-T (12x192, patch 2)"
    assert "data" not in found and "decoder" not in found and "mask" not in found


def test_tiny_record__is_comparable_with_no_row():
    measured = record("model.patch_size=4", preset="tiny", num_train=10_000)
    for found in rows(cut_published.TABLES):
        why = reasons(found, measured)
        assert why["data"].startswith("embedded (Fashion-MNIST sample), not ")
        assert why["model"] == f"ViT 4 x 96 / 4, not {found.backbone}"


def test_facts__name_fields_that_exist():
    fields = set(flatten(load_config("hog", "tiny").model_dump()))
    known = {field for facts in reason.all_facts() for field in facts.fields}
    assert known - fields <= {"target.params.num_components"}
