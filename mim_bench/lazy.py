"""Objects named as `module:name` in recipes and specs, imported when they are needed."""

import importlib
from typing import Any

from mim_bench.errors import UserError


def import_object(path: str, title: str) -> Any:
    """The object behind `module:name`; `title` begins the UserError where it cannot be imported."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        hint = (
            "; its folder belongs on PYTHONPATH" if error.name == module.partition(".")[0] else ""
        )
        raise UserError(f"{title} cannot be imported: {error}{hint}") from None
    except (ImportError, AttributeError) as error:
        raise UserError(f"{title} cannot be imported: {error}") from None
