"""Errors a user can cause, and the names they probably meant."""

import difflib
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """The user's mistake, reported in one line; the command line exits with code 2."""


def check_printable(text: str, what: str) -> None:
    """Refuses line breaks and other control characters, which would reach a file, a terminal or a page."""
    if not text.isprintable():
        raise UserError(f"{what}, {text!r}, holds a control character")


def suggest(name: str, allowed: Iterable[str]) -> str:
    """`nearest: ...; allowed: ...` for the end of an error line, nearest names first."""
    names = sorted(set(allowed))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    listed = f"allowed: {', '.join(names)}" if names else "none are allowed"
    return f"nearest: {', '.join(near)}; {listed}" if near else listed


def user_code_line(error: BaseException) -> str | None:
    """`FILE:LINE` of the innermost call in code that is neither ours nor installed, such as a user's target."""
    paths = {*sysconfig.get_paths().values(), sys.prefix, str(Path(__file__).parent)}
    installed = tuple(str(Path(path).resolve()) for path in paths)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not str(path.resolve()).startswith(installed):
            return f"{path}:{frame.lineno}"
    return None
