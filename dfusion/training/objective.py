"""The objective that settings ask for."""

from dataclasses import fields

from dfusion.method.losses import LOSSES
from dfusion.method.objective import Objective
from dfusion.settings.own import own
from dfusion.settings.schema import Train
from dfusion.settings.steps import parse_weights


def objective_of(train: Train) -> Objective:
    """Raises UserError for a loss that cannot be imported, ValueError for unreadable weights."""
    kind = LOSSES.get(train.method) or own("train.method", train.method, LOSSES)
    given = {f.name: getattr(train, f.name) for f in fields(kind) if hasattr(train, f.name)}  # type: ignore[arg-type]
    return Objective(kind(**given), train.kl_initial, parse_weights(train.step_weights))
