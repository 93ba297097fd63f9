"""The ways to make a target, by name."""

from collections.abc import Callable, Sequence

from dfusion.method.controls import branch, renoise
from dfusion.method.fusion import FusionPlan, Source, Target, fuse
from dfusion.method.sampling import OnStep, Policy

MAKERS: dict[str, Callable[[Policy, FusionPlan, Sequence[Source], OnStep], list[Target]]] = {
    "attention": fuse,
    "branch": branch,
    "renoise": renoise,
}


def make_targets(
    policy: Policy,
    plan: FusionPlan,
    pairs: Sequence[Source],
    on_step: OnStep = lambda i, x: None,
) -> list[Target]:
    """One batch of targets, made as the plan says; prompts may differ."""
    return MAKERS[plan.kind](policy, plan, pairs, on_step)
