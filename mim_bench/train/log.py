"""The learning curve of a training: `<name>.jsonl`, one JSON object a line."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mim_bench.errors import UserError
from mim_bench.files import check_regular, write_text
from mim_bench.train import distributed
from mim_bench.train.boards import Board

_logger = logging.getLogger(__name__)


class TrainingLog:
    """The learning curve: JSON lines, cut back to the step that training resumes from."""

    def __init__(
        self, path: Path, step: int, steps_per_epoch: int, boards: Sequence[Board] = ()
    ) -> None:
        """`step`: lines after it are dropped; `boards`: shown what is written, too."""
        self.path = path
        self.steps_per_epoch = max(1, steps_per_epoch)
        kept = [line for line in read_log(path) if line["step"] <= step] if path.exists() else []
        losses = [line["loss"] for line in kept if "loss" in line]
        self.last_loss = losses[-1] if losses else None
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.boards = boards

    def write(self, *, step: int, **values: float) -> None:
        """Adds a line."""
        line = {"step": step, "epoch": step / self.steps_per_epoch, **values}
        self.last_loss = values.get("loss", self.last_loss)
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error}") from None
        for board in self.boards:
            board.add(self.path.stem, step, values)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a learning curve; a line cut off by a kill, or damaged, is left out."""
    lines = []
    check_regular(path)
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
            _ = line["step"] + line["epoch"] + line.get("loss", 0)
            lines.append(line)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            _logger.warning("left out a broken line of %s", path)
    return lines


def convergence(path: Path, name: str) -> tuple[str, ...]:
    """Note on how much the loss fell from the last tenth but one of the lines to the last; on rank 0 alone."""
    if not distributed.is_main():
        return ()
    lines = [line for line in read_log(path) if "loss" in line]
    tenth = max(1, round(len(lines) / 10))
    last, before = lines[-tenth:], lines[-2 * tenth : -tenth]
    if not before:
        return (f"{name}: too few log lines to judge whether it is converged",)
    old, new = (sum(line["loss"] for line in part) / len(part) for part in (before, last))
    return (
        f"{name}: over its last tenth the training loss fell by {100 * (old - new) / old:.1f} %",
    )
