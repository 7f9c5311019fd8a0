"""The command line: a thin layer over the Python surface.

Exit codes: 0 done, 1 our mistake, 2 the user's (one line, no traceback unless --debug), 130 stopped.
"""

import errno
import io
import logging
import os
import signal
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from mim_bench.cli import cluster, encoders, results, runs, targets
from mim_bench.cli.options import err_console, print_line
from mim_bench.errors import UserError, suggest, user_code_line

app = typer.Typer(
    name="mim_bench",
    help="Which reconstruction target makes the best masked image model, everything else being equal?",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    suggest_commands=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(runs.app)
app.add_typer(runs.config_app, name="config")
app.add_typer(targets.app)
app.add_typer(encoders.app)
app.add_typer(results.app)
app.add_typer(cluster.app)

_STOPPED = 130
"""Exit code of what Ctrl-C or a scheduler ended."""
_NOT_OUR_FAULT = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOENT,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.EIO,
)  # fmt: skip
"""A full disk, one that may not be written to, a path that cannot be, too many open files."""


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print_line(f"mim_bench {version('mim_bench')}")
        raise typer.Exit


@app.callback()
def _common(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits."""
    if arguments is None and sys.getfilesystemencoding() != "utf-8":
        # a locale of ASCII: paths are UTF-8 all the same, and Python decides on that when it starts
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "mim_bench", *sys.argv[1:]])
    arguments = sys.argv[1:] if arguments is None else arguments
    if odd := [text for text in arguments if not text.isascii() and not _is_utf8(text)]:
        shown = os.fsencode(odd[0]).decode(errors="replace")
        _stop(f"error: '{shown}' is no UTF-8; give the path by a link whose name is", 2)
    debug = "--debug" in arguments
    os.environ["MPLBACKEND"] = "agg"  # a notebook hands down one that only works inside it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII only
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(message)s",
        handlers=[_handler()],
        force=True,
    )
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's stop is as good as Ctrl-C
    _quieten()
    try:
        code = app(
            [a for a in arguments if a != "--debug"], standalone_mode=False, prog_name="mim_bench"
        )
        if code == _STOPPED:  # so do newer versions of typer tell Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        if debug:
            raise
        _stop(f"error: {error}", 2, error)
    except (KeyboardInterrupt, typer.Abort):
        _stop("stopped; the same command continues", _STOPPED)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # click's errors, which typer brings along
        if usage is not None:
            line = usage()
            _stop(f"error: {_with_hint(line)}" if line else "", 2, error)
        if debug:
            raise
        if "Too many open files" in str(error):
            _stop("error: too many open files; `ulimit -n 4096` before the command allows more", 2)
        if isinstance(error, OSError) and error.errno in _NOT_OUR_FAULT:
            _stop(f"error: {error.filename or 'disk'}: {error.strerror}", 2)
        from mim_bench.train.distributed import is_lost_peer

        if is_lost_peer(error):
            reason = str(error).strip().partition("\n")[0]
            _stop(
                f"error: another process of this run ended or was silent too long ({reason})",
                1,
                error,
            )
        if line := user_code_line(error):
            _stop(f"error: {line}: {type(error).__name__}: {error}; --debug shows more", 2, error)
        _stop(f"internal error: {type(error).__name__}: {error}; --debug shows where", 1, error)


def _quieten() -> None:
    """Keeps other libraries' chatter out; of a download each try that fails would be a line."""
    for noisy in ("matplotlib", "PIL", "asyncio", "filelock", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for network in ("huggingface_hub", "httpx", "timm"):
        logging.getLogger(network).setLevel(logging.ERROR)


def _is_utf8(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _handler() -> logging.Handler:
    """Prints each warning once, however many cells it holds for."""
    reported: set[str] = set()

    class Once(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = f"{record.levelname.lower()}: {record.getMessage()}"
            if line not in reported:
                reported.add(line)
                print_line(line, console=err_console)

    return Once()


def _with_hint(line: str) -> str:
    """A complaint of click's, with what to type where it is of an unknown command or a benchmark that is missing."""
    line = line.replace("Value error, ", "")
    if line.startswith("Missing argument 'benchmark'"):
        return "the benchmark is missing; `list benchmarks` names them"
    name = line.partition("No such command '")[2].rstrip("'.")
    if not name:
        return line
    from mim_bench.cli.words import COMMANDS

    names = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    return f"no command '{name}'; {COMMANDS.get(name) or suggest(name, names)}"


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _stop(line: str, code: int, error: Exception | None = None) -> NoReturn:
    number = os.environ.get("RANK", "0")
    # of several processes rank 0 speaks for all, unless it does not know
    if number != "0" and os.environ.get("WORLD_SIZE", "1") != "1":
        from mim_bench.train.distributed import is_reported

        line = "" if error is None or is_reported(error) else f"rank {number}: {line}"
    if line:
        print_line(line, console=err_console)
    sys.exit(code)
