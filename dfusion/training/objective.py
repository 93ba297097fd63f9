"""The objective that settings ask for."""

from dataclasses import fields

from dfusion.method.losses import LOSSES
from dfusion.method.objective import Objective
from dfusion.method.step_weights import Equal, Listed
from dfusion.settings.own import own
from dfusion.settings.schema import Train
from dfusion.settings.steps import parse_weights


def objective_of(train: Train) -> Objective:
    """Raises UserError for a loss that cannot be imported, ValueError for unreadable weights."""
    kind = LOSSES.get(train.method) or own("train.method", train.method, LOSSES)
    given = {f.name: getattr(train, f.name) for f in fields(kind) if hasattr(train, f.name)}  # type: ignore[arg-type]
    weights = parse_weights(train.step_weights)
    chosen = Equal(weights) if isinstance(weights, frozenset) else Listed(weights)
    return Objective(
        kind(**given), train.kl_initial, chosen, train.outside_weight, train.loser_limit
    )
