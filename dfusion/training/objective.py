"""The objective that settings ask for."""

from dfusion.method.objective import Objective
from dfusion.settings.schema import Train
from dfusion.settings.steps import parse_weights


def objective_of(train: Train) -> Objective:
    """Raises ValueError for unreadable weights of steps."""
    return Objective(
        method=train.method,
        beta=train.beta,
        form=train.ratio,
        clip=train.eps if train.eps > 0 else None,
        advantage_max=train.adv_clip_max,
        dpok_alpha=train.dpok_alpha,
        dpok_beta=train.dpok_beta,
        reference=train.reference,
        kl_initial=train.kl_initial,
        step_weights=parse_weights(train.step_weights),
    )
