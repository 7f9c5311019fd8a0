"""Errors a user can cause, and the names they probably meant."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's mistake, reported in one line; the command line exits with code 2."""


def suggest(name: str, allowed: Iterable[str]) -> str:
    """`nearest: ...; allowed: ...` for the end of an error line, nearest names first."""
    names = sorted(set(allowed))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    listed = f"allowed: {', '.join(names)}" if names else "none are allowed"
    return f"nearest: {', '.join(near)}; {listed}" if near else listed
