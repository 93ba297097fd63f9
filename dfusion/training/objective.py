"""The objective that settings ask for."""

import importlib
from dataclasses import fields

from dfusion.errors import UserError, reason
from dfusion.method.losses import LOSSES, Loss
from dfusion.method.objective import Objective
from dfusion.settings.schema import Train
from dfusion.settings.steps import parse_weights


def objective_of(train: Train) -> Objective:
    """Raises UserError for a loss that cannot be imported, ValueError for unreadable weights."""
    kind = LOSSES.get(train.method) or _imported(train.method)
    given = {f.name: getattr(train, f.name) for f in fields(kind) if hasattr(train, f.name)}  # type: ignore[arg-type]
    return Objective(kind(**given), train.kl_initial, parse_weights(train.step_weights))


def _imported(name: str) -> type[Loss]:
    """The loss package.module:Name."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module raises what it wants as it is imported
        raise UserError(f"--config.train.method {name}: {reason(error)}") from error
