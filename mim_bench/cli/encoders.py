"""The verbs on encoders: inspect, eval, export, embed, reconstruct, look."""

from pathlib import Path
from typing import Annotated

import typer

from mim_bench.cli.options import (
    WORDS,
    Data,
    Device,
    Limit,
    Overrides,
    Preset,
    Seed,
    err_console,
    print_line,
    print_table,
    run_folder,
    settings,
)
from mim_bench.cli.records import print_records
from mim_bench.errors import UserError

app = typer.Typer()

NumHeads = Annotated[
    int | None, typer.Option(min=1, help="Attention heads, where file and family state none.")
]
Partial = Annotated[
    bool, typer.Option("--allow-partial", help="Load what matches; the rest stays untrained.")
]


@app.command(epilog="Example: python -m mim_bench inspect mae_pretrain_vit_base.pth")
def inspect(
    file: Annotated[
        str, typer.Argument(help="File of weights, folder of a run or library, or timm:NAME.")
    ],
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels; positions are interpolated to it.")
    ] = None,
    num_heads: NumHeads = None,
    allow_partial: Partial = False,
) -> None:
    """Inspect a file of weights: its tensors, its family, and what would load. No code in it is run."""
    from mim_bench.evaluate.encoders.describe import report
    from mim_bench.experiment.external import open_any

    loaded = open_any(
        _encoder(file), image_size=(image_size, image_size) if image_size else None, num_heads=num_heads,
        allow_partial=allow_partial, notify=_say,
    )  # fmt: skip
    print_table(["field", "value"], [list(row) for row in report(loaded)])


@app.command(
    "eval",
    context_settings=WORDS,
    epilog="Example: python -m mim_bench eval --encoder mae_pretrain_vit_base.pth --protocol linear,knn --preset small",
)
def evaluate(
    encoder: Annotated[
        str,
        typer.Option(
            help="File of weights, folder of a run or library, timm:NAME, timm:NAME@FILE."
        ),
    ],
    overrides: Overrides = None,
    protocol: Annotated[
        str | None, typer.Option(help="Comma-separated; by default the preset's.")
    ] = None,
    preset: Preset = "tiny",
    seed: Seed = None,
    data: Data = None,
    device: Device = None,
    limit_images: Limit = None,
    readout: Annotated[
        str, typer.Option(help="More readouts, such as block6/cls,last/cls+patch_mean, or all.")
    ] = "",
    num_heads: NumHeads = None,
    allow_partial: Partial = False,
    out: Annotated[Path, typer.Option(help="Folder for the records.")] = Path("evaluations"),
    results: Annotated[
        Path | None, typer.Option(help="Keep the records here too, for `table methods`.")
    ] = None,
) -> None:
    """Evaluate anybody's encoder under the same protocols; its records stand in no closed table."""
    from mim_bench.cli.words import read_words
    from mim_bench.experiment.external import evaluate_encoder
    from mim_bench.records import store
    from mim_bench.train import progress

    named, words = read_words(overrides)
    if named:
        raise UserError(f"'{named}': an encoder was trained already; no target can be chosen")
    overrides_given = settings(words, seed, data, device, limit_images, protocol)
    evaluated = evaluate_encoder(
        _encoder(encoder), preset, overrides_given, readout=readout, out=out, num_heads=num_heads,
        allow_partial=allow_partial, stages=progress.Terminal(err_console), notify=_say,
    )  # fmt: skip
    print_records(evaluated.records, readouts=bool(readout))
    print_line(
        f"division external: {evaluated.loaded.family}, sha256 {evaluated.loaded.sha256[:12]}"
    )
    print_line(f"records  {evaluated.folder / 'records'}")
    if results is not None:
        kept = store.home("methods", preset, results) / "records"
        store.keep(evaluated.folder, evaluated.records, kept)
        flags = f"--preset {preset} --results {results}"
        print_line(f"kept in  {kept}: python -m mim_bench table methods {flags}")


@app.command(
    epilog="Example: python -m mim_bench export runs/hog-tiny-s0-51bd2f37 --format timm --out hog-timm"
)
def export(
    run: Annotated[str, typer.Argument(help="Run folder, or a run's name below runs.")],
    format: Annotated[str, typer.Option(help="timm, hf or safetensors.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
) -> None:
    """Write a run's encoder for timm, transformers, or as plain safetensors, with a model card."""
    from mim_bench.experiment.export import export_run

    paths = export_run(run_folder(run, Path("runs")), format, out)
    print_line("wrote " + ", ".join(map(str, paths)))


@app.command(
    epilog="Example: python -m mim_bench embed runs/hog-tiny-s0-51bd2f37 --data embedded --out features.parquet",
)
def embed(
    encoder: Annotated[
        str, typer.Argument(help="Run or its name below runs, file of weights, timm:NAME.")
    ],
    data: Annotated[str, typer.Option(help="Data source; see `list data`.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="A .parquet file.")] = Path("features.parquet"),
    preset: Preset = "tiny",
    device: Device = None,
    limit_images: Limit = None,
    readout: Annotated[
        str, typer.Option(help="Comma-separated, such as last/cls,block6/patch_mean.")
    ] = "",
    num_heads: NumHeads = None,
) -> None:
    """Write an encoder's features of every image of a data set as Parquet, with labels and file names."""
    from mim_bench.experiment import embed as embedding

    overrides_given = settings(overrides, None, data, device, limit_images)
    names = [name.strip() for name in readout.split(",") if name.strip()]
    rows = embedding.embed(
        _encoder(encoder),
        preset,
        overrides_given,
        out,
        readouts=names,
        num_heads=num_heads,
        notify=_say,
    )
    print_line(f"wrote {out}, {rows:,} images")


@app.command(
    epilog="Example: python -m mim_bench reconstruct runs/hog-tiny-s0-51bd2f37 --images my.jpg --mask-ratio 0.75"
)
def reconstruct(
    run: Annotated[str, typer.Argument(help="Run folder, or a run's name below runs.")],
    images: Annotated[list[Path], typer.Option(help="Image file, repeatable, at most 8.")],
    mask_ratio: Annotated[
        str,
        typer.Option(
            metavar="RATIO|all",
            help="Hidden patches over all, by default the run's; all: a frame for each tenth, which `report` shows "
            "with a slider.",
        ),
    ] = "",
    out: Annotated[
        Path, typer.Option(help="A .png file; in results/BENCHMARK/PRESET it is on the report.")
    ] = Path("picture.png"),
    device: Device = None,
) -> None:
    """Draw what a run's model makes of your own images: input, target, prediction."""
    from mim_bench.evaluate import picture
    from mim_bench.evaluate.own_images import reconstruct as predict
    from mim_bench.evaluate.reconstruction import sample_figure
    from mim_bench.train.environment import choose_device

    if out.suffix != ".png":
        raise UserError(f"out={out}: the name of a .png file is needed")
    folder = run_folder(run, Path("runs"))
    ratios = None if mask_ratio == "all" else _ratio(mask_ratio)
    config, samples = predict(folder, images, ratios, choose_device(device or "auto"))
    figures = {}
    for sample in samples:
        hidden = f"{sample.mask.float().mean():.0%} hidden"
        figures[hidden] = sample_figure(config, sample, f"{config.run_id}, {hidden}")
    if len(figures) > 1:
        picture.write_frames(figures, out)
    else:
        picture.write(next(iter(figures.values())), out)
    print_line(f"wrote {out}")


def _ratio(text: str) -> tuple[float, ...]:
    try:
        return (float(text),) if text else ()
    except ValueError:
        raise UserError(f"mask-ratio={text}; allowed: a number between 0 and 1, or all") from None


@app.command(
    epilog="Example: python -m mim_bench look runs/hog-tiny-s0-51bd2f37 --images my.jpg --patch 2,1 --data embedded"
)
def look(
    encoder: Annotated[
        str, typer.Argument(help="Run or its name below runs, file of weights, timm:NAME.")
    ],
    images: Annotated[list[Path], typer.Option(help="Image file, repeatable, at most 8.")],
    patch: Annotated[
        str | None, typer.Option(metavar="ROW,COLUMN", help="Patch whose attention is drawn too.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data source to seek nearest neighbours in.")
    ] = None,
    out: Annotated[Path, typer.Option(help="A .png file.")] = Path("look.png"),
    num_heads: NumHeads = None,
) -> None:
    """Draw attention, features as false colour and nearest neighbours of your own images."""
    from mim_bench.experiment import look as looking

    clicked = None
    if patch is not None:
        row, comma, column = patch.partition(",")
        if not (comma and row.strip().isdigit() and column.strip().isdigit()):
            raise UserError(f"patch={patch}: two whole numbers are needed, such as 2,1")
        clicked = (int(row), int(column))
    looking.look(
        _encoder(encoder), images, out, patch=clicked, data=data, num_heads=num_heads, notify=_say
    )
    print_line(f"wrote {out}")


def _encoder(spec: str) -> str:
    """A run's name below runs, or what was typed."""
    below = Path("runs") / spec
    return str(below) if (below / "config.json").is_file() and not Path(spec).exists() else spec


def _say(line: str) -> None:
    print_line(line, console=err_console, style="dim")
