"""Progress on a terminal: one bar a stage with images/s and time left; silence elsewhere."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mim_bench.train.loop import Report


class Stages(Protocol):
    """Somebody who watches a run."""

    def stage(self, name: str) -> AbstractContextManager[Report]:
        """Entered when a stage begins, left when it ends."""
        ...


class Quiet:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Report]:
        """A stage whose reports go nowhere."""
        yield lambda done_steps, num_steps, images_per_s, loss: None


class Terminal:
    """Bars on a terminal; where the console is none, one plain line a stage."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def stage(self, name: str) -> Iterator[Report]:
        """A bar for the time of the stage; it counts as soon as the first report comes."""
        if not self.console.is_terminal:
            yield lambda done_steps, num_steps, images_per_s, loss: None
            return
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bars:
            bar = bars.add_task(name, total=None, figures="")

            def report(done_steps: int, num_steps: int, images_per_s: float, loss: float) -> None:
                figures = f"{images_per_s:,.0f} images/s  loss {loss:.4f}"
                bars.update(bar, completed=done_steps, total=num_steps, figures=figures)

            yield report
