"""The command line as a user meets it: what it prints, what it refuses, and with which exit code."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from conftest import SMALL
from PIL import Image

from mim_bench.cli.main import main
from mim_bench.config import recipe
from mim_bench.records import png_stamp

RUN = ["run", "--target", "pixel", *SMALL]


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Runs the command line in an empty folder -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


def test_run__prints_table_and_paths_and_says_when_finished(cli, tmp_path):
    code, out, err = cli(*RUN)
    assert code == 0
    for word in (
        "pixel",
        "knn",
        "linear",
        "last/patch_mean",
        "images/s",
        "picture.png",
        "records",
    ):
        assert word in out
    assert "blr 0.0" in err and "-> lr" in err
    folder = next((tmp_path / "runs").glob("pixel-tiny-s0-*"))
    assert {path.name for path in folder.iterdir()} >= {
        "config.json", "manifest.json", "pretrain.jsonl", "pretrain.json",
        "encoder.safetensors", "model.safetensors", "picture.png", "records",
    }  # fmt: skip
    code, again, err = cli(*RUN)
    assert code == 0 and "already finished" in err
    assert again == out
    assert cli(*RUN, "--force")[0] == 0


def test_diff__names_the_only_difference(cli, tmp_path):
    for target in ("pixel", "hog"):
        assert cli("run", "--target", target, *SMALL, "evaluate.protocols=[]")[0] == 0
    a, b = sorted(
        path.name for path in (tmp_path / "runs").iterdir() if (path / "config.json").exists()
    )
    code, out, _ = cli("diff", a, b)
    assert code == 0 and "only the target differs" in out and "target.name" in out
    assert cli("run", "--target", "hog", *SMALL, "evaluate.protocols=[]", "mask.ratio=0.25")[0] == 0
    other = next(p.name for p in (tmp_path / "runs").glob("hog*") if p.name not in (a, b))
    code, out, _ = cli("diff", a, other)
    assert code == 0 and "more than the target differs" in out and "mask.ratio" in out
    code, _, err = cli("diff", a, b[:-2])
    assert code == 2 and b in err


@pytest.mark.parametrize("what", ["targets", "presets", "protocols", "data", "benchmarks"])
def test_list__names_everything_there_is(cli, what):
    code, out, _ = cli("list", what)
    assert code == 0
    kind = {"presets": "preset", "targets": "targets", "benchmarks": "benchmarks"}.get(what)
    for name in recipe.names(kind) if kind else ("knn" if what == "protocols" else "embedded",):
        assert name in out


def test_config_show__tells_values_and_origins(cli):
    code, out, _ = cli("config", "show", "--target", "hog", "--preset", "cifar10", "seed=4")
    assert code == 0
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert "command line" in lines["seed"] and "4" in lines["seed"]
    assert "192" in lines["model.embed_dim"] and "preset cifar10" in lines["model.embed_dim"]
    code, out, _ = cli("config", "show", "--target", "hog", "--json")
    assert json.loads(out)["target"]["name"] == "hog"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "--target is missing; allowed: bootstrap, canny"),
        (["evaluate", "runs/x"], "`run` evaluates"),
        (["export", "a", "--format", "timm", "--out", "b"], "no run 'a'"),
        (["inspect", "nowhere.pth"], "'nowhere.pth' does not exist"),
        (["inspect", "https://host/w.pth"], "download it first"),
        (["embed", "nowhere.pth", "--data", "embedded"], "'nowhere.pth' does not exist"),
        (["reconstruct", "a", "--images", "x.jpg"], "no run 'a'"),
        (["reconstruct", "a", "--images", "x.jpg", "--out", "x"], "the name of a .png file"),
        (["eval", "--encoder", "nowhere.pth"], "'nowhere.pth' does not exist"),
        (["eval", "--encoder", "timm:vit_tinyy_patch16_224"], "nearest: vit_tiny_patch16_224"),
        (["eval", "--encoder", "x.pth", "hog"], "no target can be chosen"),
        (["tabel"], "nearest: table"),
        (["sweep", "targets", "seed=0"], "use --seeds 0"),
        (["sweep", "targets", "--seeds", "0,0"], "different whole numbers"),
        (["sweep", "targets", "hog"], "which targets are compared"),
        (["sweep", "targets", "--protocols", "speedy"], "nearest: speed"),
        (["run", "--target", "hogg"], "nearest: hog"),
        (["run", "--target", "hog", "--preset", "tini"], "nearest: tiny"),
        (["run", "--target", "hog", "--protocols", "lineer"], "nearest: linear"),
        (["run", "--target", "hog", "--data", "imbedded"], "nearest: embedded"),
        (["run", "--target", "hog", "--data", "fodler:/nowhere"], "nearest: folder"),
        (["run", "--target", "hog", "--data", "folder:/nowhere"], "data.source: /nowhere: no such"),
        (["run", "--target", "hog", "--data", "folder:nowhere"], "nowhere"),
        (["run", "--target", "hog", "--device", "gpu"], "'cuda'"),
        (["run", "--target", "hog", "--seed", "-1"], "seed=-1"),
        (["run", "--target", "hog", "pretrain.epoch=1"], "nearest: pretrain.epochs"),
        (["run", "--target", "hog", "data.image_size=30"], "data.image_size=30x30"),
        (["run", "--target", "hog", "model.patch_size=5"], "model.patch_size=5"),
        (["run", "--target", "hog", "mask.ratio=1.5"], "mask.ratio=1.5"),
        (["run", "--target", "hog", "mask.ratio=0.99"], "leaves 0 visible of 16 patches"),
        (["run", "--target", "hog", "--nonsense"], "--nonsense"),
        (["run", "--target", "nowhere/mine.toml"], "nowhere/mine.toml"),
        (["run", "--target", "dvae", "dvae.weights=nowhere.pkl"], "nowhere.pkl"),
        (["list", "target"], "targets"),
        (["config", "show", "--target", "hog", "--preset", "tini"], "nearest: tiny"),
        (["diff", "a", "b"], "no run 'a'"),
        (["speed", "--target", "hogg"], "nearest: hog"),
        (["sweep", "target"], "nearest: targets"),
        (["sweep", "methods"], "published rows only"),
        (["sweep", "targets", "--protocols", "lineer"], "nearest: linear"),
        (["sweep", "targets", "--jobs", "0"], "--jobs"),
        (["table", "targets"], "no records in results/targets/tiny/records"),
        (["table", "targets", "--preset", "tini"], "nearest: tiny"),
        (["figure", "targets"], "no records in"),
        (["figure", "methods"], "has no figure"),
        (["compare", "a", "b"], "no run 'a'"),
        (["walk"], "walk"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_command__is_one_line_and_exit_code_2(cli, tmp_path, arguments, message):
    code, out, err = cli(*arguments)
    assert code == 2
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in out + err
    assert list(tmp_path.rglob("*.json")) == list(tmp_path.rglob("*.safetensors")) == []


def test_results__go_from_records_to_table_compare_and_validate(cli, tmp_path):
    from fake import fake_results

    fake_results("decoder_depth", "tiny", tmp_path / "results", spread=0.01)
    code, out, _ = cli("table", "decoder_depth")
    assert code == 0 and "decoder depth 4" in out and "indistinguishable" in out
    made = {path.name for path in (tmp_path / "results/decoder_depth/tiny").iterdir()}
    assert made == {"records", "table.md", "table.csv", "table.tex", "records.csv"}
    runs = sorted({p.name.partition("__")[0] for p in tmp_path.glob("results/*/*/records/*.json")})
    code, out, _ = cli("compare", runs[0], runs[1])
    assert code == 0 and "linear" in out and "finetune" in out
    code, out, _ = cli("validate")
    assert code == 0 and "1 folders of records" in out
    next(tmp_path.glob("results/*/*/records/*.npz")).unlink()
    code, _, err = cli("validate")
    assert code == 2 and "cannot be read" in err and err.endswith("error: 1 fault\n")


def write_images(folder, num=12, size=(28, 28)):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(len(folder.name) + ord(folder.name[-1]))  # classes differ
    for place in range(num):
        noise = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{place:02d}.png")


def test_unlabelled_folder__pretrains_but_labelled_protocols_are_refused(cli, tmp_path):
    write_images(tmp_path / "flat", 60)
    run = [*RUN, "--data", "folder:flat", "pretrain.batch_size=20"]
    code, _, err = cli(*run)
    assert code == 2 and "no labels" in err
    code, out, _ = cli(*run, "evaluate.protocols=[]")
    assert code == 0 and "picture.png" in out


def test_truncated_image__is_named_or_skipped_and_counted(cli, tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / "pets" / name, 40)
    bad = tmp_path / "pets" / "dog" / "07.png"
    bad.write_bytes(bad.read_bytes()[:200])
    run = [*RUN, "--data", "folder:pets", "pretrain.batch_size=20"]
    code, _, err = cli(*run)
    assert code == 2 and "07.png" in err
    code, _, _ = cli(*run, "--skip-bad-images")
    assert code == 0
    found = json.loads(next(tmp_path.glob("runs/*/records/knn.json")).read_text())
    assert found["data"]["num_skipped_images"] == 1


def test_non_square_three_channel_images__work_for_every_target(cli, tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / "wide" / name, 40, size=(16, 24))
    for target in recipe.names("targets"):
        arguments = [
            "run",
            "--target",
            target,
            *SMALL,
            "--data",
            "folder:wide",
            "model.patch_size=8",
        ]
        extra = ["pretrain.batch_size=20", "--protocols", "knn"]
        fit = ["dvae.fit_epochs=1", "dvae.vocab_size=8"] if target == "dvae" else []
        code, _, err = cli(*arguments, *extra, *fit)
        assert code == 0, err


def test_single_class__is_refused(cli, tmp_path):
    write_images(tmp_path / "one" / "cat", 40)
    code, _, err = cli(*RUN, "--data", "folder:one")
    assert code == 2 and "class" in err


def test_full_disk__is_the_users_to_mend(cli, monkeypatch):
    from mim_bench.evaluate import picture

    def full(figure, path):
        raise OSError(28, "No space left on device", "picture.png")

    monkeypatch.setattr(picture, "write", full)
    code, _, err = cli(*RUN)
    assert code == 2 and "error: picture.png: No space left on device" in err


def test_two_processes__never_share_a_run(cli, tmp_path):
    import torch

    from mim_bench.config.resolve import load_config
    from mim_bench.data.run_data import complete, open_data
    from mim_bench.records.run_folder import lock

    config = load_config("pixel", "tiny", SMALL)
    config = complete(config, open_data(config, torch.device("cpu")))
    with lock(tmp_path / "runs", config):
        code, _, err = cli(*RUN)
    assert code == 2 and "another process is busy with" in err
    assert list(tmp_path.rglob("config.json")) == []
    assert cli(*RUN, "evaluate.protocols=[]", "--resume")[0] == 0


def test_tensorboard__gets_the_learning_curve(cli, tmp_path):
    code, _, err = cli(*RUN, "evaluate.protocols=[]", "runtime.tensorboard=true")
    assert code == 0, err
    assert next(tmp_path.glob("runs/*/tensorboard/events*")).stat().st_size > 200


def test_internal_error__is_exit_code_1_without_traceback(cli, monkeypatch):
    monkeypatch.setattr(
        recipe, "load_recipe", json.loads
    )  # innermost is installed code, not a user's
    code, out, err = cli("list", "targets")
    assert code == 1 and "internal error: JSONDecodeError" in err and "Traceback" not in out + err
    monkeypatch.setattr("sys.argv", ["mim_bench"])
    with pytest.raises(json.JSONDecodeError):
        main(["list", "targets", "--debug"])


def test_encoder__goes_through_its_verbs(cli, tmp_path):
    """inspect, eval, export, embed and reconstruct of one run, as typed."""
    assert cli("run", "hog", *SMALL, "evaluate.protocols=[]")[0] == 0
    name = next(path.parent.name for path in (tmp_path / "runs").glob("*/config.json"))
    code, out, _ = cli("inspect", name)
    assert code == 0 and "run of mim_bench" in out and "0 missing, 0 unexpected" in out
    code, out, err = cli(
        "eval",
        "--encoder",
        name,
        "--protocol",
        "knn",
        "--limit-images",
        "120",
        "--readout",
        "block1/cls",
    )
    assert code == 0 and "knn @ block1/cls" in out and "division external" in out
    assert "tensors matched" in err and "input normalised" in err
    assert list((tmp_path / "evaluations").glob("external-*/records/knn.json"))
    code, out, _ = cli("export", name, "--format", "timm", "--out", "there")
    assert code == 0 and (tmp_path / "there" / "model.safetensors").is_file()
    assert cli("eval", "--encoder", "there", "--protocol", "knn", "--limit-images", "120")[0] == 0
    code, out, _ = cli("embed", name, "--data", "embedded", "--limit-images", "50")
    assert code == 0 and "wrote features.parquet, 100 images" in out
    picture = str(tmp_path / "runs" / name / "picture.png")
    code, out, _ = cli("reconstruct", name, "--images", picture, "--mask-ratio", "0.75")
    assert code == 0 and png_stamp.read_frames(tmp_path / "picture.png") == []
    code, _, err = cli("reconstruct", name, "--images", picture, "--mask-ratio", "all")
    assert code == 0, err
    labels = png_stamp.read_frames(tmp_path / "picture.png")
    assert (
        len(labels) == 8 and labels[4] == "50% hidden"
    )  # nine tenths of 16 patches would leave one
    code, _, err = cli("reconstruct", name, "--images", picture, "--mask-ratio", "much")
    assert code == 2 and "mask-ratio=much; allowed: a number between 0 and 1, or all" in err


def test_version_and_help__have_their_usual_spelling(cli):
    assert cli("--version")[:2] == (0, f"mim_bench {version('mim_bench')}\n")
    for command in ([], ["run"], ["sweep"], ["config"], ["config", "show"]):
        code, out, _ = cli(*command, "-h")
        assert code == 0 and "--help" in out
    code, out, err = cli("config")
    assert "show" in out + err and "error" not in err


def test_path_with_brackets__is_printed_as_it_is_and_on_one_line(cli, tmp_path):
    out_folder = tmp_path / "runs [v2]" / ("long " * 30)
    code, out, _ = cli(*RUN, "evaluate.protocols=none", "--out", str(out_folder))
    assert code == 0 and f"encoder  {out_folder}" in out


def test_out_that_is_a_file__is_the_users_to_mend(cli, tmp_path):
    (tmp_path / "file").touch()
    named = {"file": "file is a file", "file/below": "file is a file"}
    named |= {"x" * 300: "x" * 20, "/proc/nothere": "nothere"}
    for out, message in named.items():
        code, _, err = cli(*RUN, "--out", out)
        assert code == 2 and message in err and "internal" not in err


def test_warning__is_printed_once_and_for_what_is_used_alone(cli):
    code, _, err = cli(*RUN, "pretrain.batch_size=500", "finetune.batch_size=500")
    assert code == 0 and err.count("is more than the 120 training images") == 1


def test_launchers_leftovers__are_named(cli, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = cli(*RUN)
    assert code == 2 and "WORLD_SIZE=2 is set without RANK" in err


def test_terminal_of_ascii_and_backend_of_a_notebook__are_no_obstacle(tmp_path):
    ascii_only = {
        "PYTHONIOENCODING": "ascii",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    command = [sys.executable, "-m", "mim_bench", *RUN]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **ascii_only}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "knn" in done.stdout


def test_path_beyond_ascii__works_in_a_locale_of_ascii_and_other_bytes_are_refused(tmp_path):
    write_images(tmp_path / "图 片" / "蚁", 12)
    write_images(tmp_path / "图 片" / "bee", 12)
    ascii_only = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "mim_bench", *RUN, "evaluate.protocols=none", "--data"]
    for source, code, said in (
        ("folder:图 片".encode(), 0, b""),
        (b"folder:caf\xe9", 2, b"is no UTF-8"),
    ):
        done = subprocess.run(
            [*command, source], cwd=tmp_path, env={**os.environ, **ascii_only}, capture_output=True
        )
        assert done.returncode == code and said in done.stderr, done.stderr


def test_no_terminal__means_no_progress_bars(tmp_path):
    command = [sys.executable, "-m", "mim_bench", *RUN, "evaluate.protocols=[]"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "\r" not in done.stdout + done.stderr and "\x1b" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) <= 4
    assert "pre-train pixel: " in done.stderr and "images/s, loss " in done.stderr
