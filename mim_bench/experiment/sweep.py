"""Running a benchmark: every missing cell, one after another or several at a time.

    python -m mim_bench sweep targets             # the same command again continues
    python -m mim_bench sweep targets --jobs 2    # two cells at a time, each on its share of the cores

A cell is done when `results/` holds its records. A record that another benchmark has of the very same run
and protocol is copied, not made again. A failed cell never stops the others.
"""

import itertools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import submitit
import torch

from mim_bench.config.cells import Cell
from mim_bench.cores import num_cores
from mim_bench.experiment.run import Result, Stages, execute
from mim_bench.files import write_text
from mim_bench.records import store
from mim_bench.records.pending import PendingCell, list_pending
from mim_bench.records.record import Record
from mim_bench.records.run_folder import Busy
from mim_bench.text import duration


def sweep(
    name: str,
    preset: str,
    *,
    out: Path,
    results: Path,
    overrides: Sequence[str] = (),
    protocols: Sequence[str] | None = None,
    jobs: int | None = None,
    stages: Stages | None = None,
    notify: Callable[[str], None] = print,
    command: str | None = None,
) -> list[Cell]:
    """Runs every missing cell on this machine; returns those that failed.

    Args:
        protocols: those to run; by default all of the benchmark.
        jobs: processes, each with a cell at a time; unset: in this process. What must have the machine for
            itself comes last, one by one, in this process.

    A failed cell's traceback is in `<out>/failed/`."""
    pending_cells = list_pending(
        name, preset, results=results, overrides=overrides, protocols=protocols
    )
    command = command or " ".join(["python -m mim_bench", *sys.argv[1:]])  # a job has its own argv
    records = store.home(name, preset, results) / "records"
    failed, finished = list[Cell](), list[str]()

    def finish(pending: PendingCell, work: Callable[[], tuple[Path, Sequence[Record]]]) -> None:
        try:
            folder, run_records = work()
        except _StoppedError:
            return
        except Busy:
            return notify(f"{pending.label}: left to another process, which is busy with it")
        except Exception as error:
            failed.append(pending.cell)
            log = out / "failed" / f"{pending.config.run_id}.log"
            write_text(log, traceback.format_exc())
            notify(f"{pending.label}: failed: {str(error).strip().splitlines()[-1]} ({log})")
            return
        store.keep(folder, run_records, records)
        finished.append(pending.label)
        num_left = len(together) + len(alone) - len(finished)
        seconds_left = (time.monotonic() - started) / len(finished) * num_left
        estimate = f"; about {duration(seconds_left)} left" if seconds_left >= 1 else ""
        notify(f"{pending.label}: done: {folder}{estimate}")

    for pending in pending_cells:
        if not pending.missing:
            notify(f"{pending.label}: was done")
    together, alone = (
        [c for p in pending_cells if (c := p.only(exclusive=e)).missing] for e in (False, True)
    )
    started = time.monotonic()
    if jobs is not None:
        _in_jobs(together, jobs, out, finish, command)
    for pending in alone if jobs is not None else together + alone:
        finish(pending, lambda pending=pending: _here(pending, out, stages, command))
    return failed


def _here(
    pending: PendingCell, out: Path, stages: Stages | None, command: str | None
) -> tuple[Path, Sequence[Record]]:
    result: Result = execute(pending.config, out=out, stages=stages, command=command)
    return result.folder, result.records


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Silences processes that are started inside: submitit's supervisors print a traceback when stopped."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 (a device, not a path)
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _StoppedError(Exception):
    """A job that ended because the sweep did."""


def run_config(
    content: dict[str, object], out: str, num_threads: int, command: str | None
) -> tuple[str, list[dict[str, object]]]:
    """One run in a process of its own: plain values in, run folder and records out."""
    torch.set_num_threads(num_threads)
    from mim_bench.config.resolve import validated

    try:
        result = execute(validated(content), out=out, command=command)
    except Busy:  # submitit would hand on its text alone
        return "", []
    return str(result.folder), [record.model_dump(mode="json") for record in result.records]


def visible_gpus() -> list[int]:
    """Numbers of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them where it is set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if all(part.strip().isdecimal() for part in visible.split(",")):
        return [int(part) for part in visible.split(",")]
    return list(range(torch.cuda.device_count()))


def _in_jobs(
    pending_cells: Sequence[PendingCell],
    jobs: int,
    out: Path,
    finish: Callable[[PendingCell, Callable[[], tuple[Path, Sequence[Record]]]], None],
    command: str | None,
) -> None:
    """Each cell a process of its own through submitit, `jobs` of them at a time, on the GPUs in turn."""
    # a shell that starts a job in the background has it ignore SIGINT, by which submitit stops processes
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    num_threads = max(1, num_cores() // jobs)
    executor = submitit.LocalExecutor(folder=out / "jobs")
    executor.update_parameters(timeout_min=60 * 24 * 365)
    gpus = itertools.cycle(visible_gpus())
    running: dict[int, submitit.Job[tuple[str, list[dict[str, object]]]]] = {}
    one_at_a_time = threading.Lock()
    stopped = threading.Event()

    def work(pending: PendingCell) -> None:
        if stopped.is_set():
            return

        def result() -> tuple[Path, Sequence[Record]]:
            with one_at_a_time, _without_stderr():
                if (gpu := next(gpus, None)) is not None:  # else submitit hides them all
                    executor.update_parameters(gpus_per_node=1, visible_gpus=(gpu,))
                job = executor.submit(
                    run_config,
                    pending.config.model_dump(mode="json"),
                    str(out),
                    num_threads,
                    command,
                )
                running[id(pending)] = job
            try:
                folder, records = job.result()
            except Exception:
                if stopped.is_set():  # stopped by us: no failure of the cell's
                    raise _StoppedError from None
                raise
            if not folder:
                raise Busy
            return Path(folder), [Record.model_validate(content) for content in records]

        finish(pending, result)

    pool = ThreadPoolExecutor(jobs)
    try:
        for future in [pool.submit(work, pending) for pending in pending_cells]:
            future.result()
    except BaseException:  # Ctrl-C too: nothing goes on unseen
        stopped.set()
        for job in running.values():
            if not job.done():
                job.cancel()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
