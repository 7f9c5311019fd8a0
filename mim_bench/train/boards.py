"""Learning curves outside their own file: TensorBoard, Weights & Biases, or another board with the same method.

Both are extras. Weights & Biases is offline unless WANDB_MODE says otherwise: `wandb sync` uploads what it wrote.
"""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from mim_bench.config.run import RuntimeConfig
from mim_bench.errors import UserError
from mim_bench.files import read_json


class Board(Protocol):
    """Something that shows curves."""

    def add(self, curve: str, step: int, values: Mapping[str, float]) -> None:
        """Adds a point: the values of a training (`pretrain`, `finetune`, ...) at a step."""
        ...


def open_boards(runtime: RuntimeConfig, folder: Path) -> tuple[Board, ...]:
    """The boards of a config, each below a run's folder. Raises UserError where its extra is missing."""
    boards: list[Board] = []
    if runtime.tensorboard:
        boards.append(_TensorBoard(folder))
    if runtime.wandb:
        boards.append(_WeightsAndBiases(folder))
    return tuple(boards)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(_missing("tensorboard", "TensorBoard")) from None
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def add(self, curve: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{curve}/{name}", value, step)
        self.writer.flush()


class _WeightsAndBiases:
    """The trainings of a run share one of its runs; each curve has a step of its own."""

    def __init__(self, folder: Path) -> None:
        self.run = _wandb_run(folder)

    def add(self, curve: str, step: int, values: Mapping[str, float]) -> None:
        point = {f"{curve}/{name}": value for name, value in values.items()}
        self.run.define_metric(f"{curve}/*", step_metric=f"{curve}/step")
        self.run.log({f"{curve}/step": step, **point})


@lru_cache(maxsize=1)
def _wandb_run(folder: Path) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(_missing("wandb", "Weights & Biases")) from None
    config = folder / "config.json"
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", "mim_bench"),
        name=folder.name,
        id=folder.name,
        dir=str(folder),
        config=read_json(config) if config.is_file() else None,
        mode=os.environ.get("WANDB_MODE", "offline"),
        resume="allow",
        reinit=True,
        settings={"silent": True, "console": "off", "disable_git": True},
    )


def _missing(extra: str, title: str) -> str:
    return f"runtime.{extra} needs {title}: pip install 'mim_bench[{extra}]'"
