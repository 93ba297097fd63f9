"""Functions and classes of your own, which flags name as package.module:name."""

import importlib
from collections.abc import Iterable
from typing import Any

from dfusion.errors import UserError, reason


def own(flag: str, name: str, known: Iterable[str]) -> Any:
    """What a flag names. known: the names that it could have had. Raises UserError."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module raises what it wants as it is imported
        raise UserError(
            f"--config.{flag} '{name}': {reason(error)}; give {', '.join(known)} or "
            "package.module:name"
        ) from error
