"""User-defined functions and classes, which flags name as package.module:name."""

import importlib
from collections.abc import Iterable
from typing import Any

from dfusion.errors import UserError, reason


def own(flag: str, name: str, known: Iterable[str]) -> Any:
    """The object that a flag names. known: the built-in names, for the error. Raises UserError."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing a module may raise anything
        raise UserError(
            f"--config.{flag} '{name}': {reason(error)}; give {', '.join(known)} or "
            "package.module:name"
        ) from error
