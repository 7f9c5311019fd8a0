"""Progress: on a terminal one bar a stage with images/s and time left, elsewhere plain lines."""

import time
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

from mim_bench.text import duration
from mim_bench.train.loop import Report

_LINE_EVERY_S = 60.0


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
    """Bars on a terminal; where the console is none, a plain line when a stage ends and every minute before."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def stage(self, name: str) -> Iterator[Report]:
        """Watches one stage; a bar counts as soon as the first report comes."""
        watch = (
            self._bar if self.console.file.isatty() else self._lines
        )  # FORCE_COLOR makes no terminal
        with watch(name) as report:
            yield report

    @contextmanager
    def _lines(self, name: str) -> Iterator[Report]:
        started = printed = time.monotonic()
        last = ""
        first: list[tuple[int, float]] = []

        def report(done_steps: int, num_steps: int, images_per_s: float, loss: float) -> None:
            nonlocal last, printed
            time_s = time.monotonic()
            if not first:
                first.append((done_steps, time_s))  # a resumed stage begins half-way
            before, began = first[0]
            last = f", {images_per_s:,.0f} images/s, loss {loss:.4f}"
            if time_s - printed >= _LINE_EVERY_S and done_steps < num_steps:
                seconds_left = (
                    (num_steps - done_steps) / max(1, done_steps - before) * (time_s - began)
                )
                printed = time_s
                self._print(
                    f"{name}: step {done_steps:,} of {num_steps:,}{last}, {duration(seconds_left)} left"
                )

        yield report
        seconds = time.monotonic() - started
        if last or seconds >= 1:  # reading what is there already is no news
            self._print(f"{name}: {duration(seconds)}{last}")

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    @contextmanager
    def _bar(self, name: str) -> Iterator[Report]:
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TextColumn("elapsed"),
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
