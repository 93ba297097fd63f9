"""Parsing of the flags for fused steps and step weights."""

import re

MOST_STEPS = 1000  # steps that a run may have
_RANGE = re.compile(r"^(\d+)(?:-(\d+))?$")


def parse_steps(text: str, steps: int) -> frozenset[int]:
    """Fused steps from a flag: "18-1" is t = 18 … 1; "20,18-1" and "" (none) work too.

    Raises ValueError naming the part that is wrong.
    """
    chosen: set[int] = set()
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = _RANGE.match(part)
        if match is None:
            raise ValueError(f"'{part}' is not a step range; write e.g. 18-1")
        ends = int(match[1]), int(match[2] or match[1])
        if min(ends) < 1 or max(ends) > steps:
            raise ValueError(f"'{part}' is out of range; steps are {steps} … 1")
        chosen |= set(range(min(ends), max(ends) + 1))
    return frozenset(chosen)


def fused_indices(text: str, steps: int) -> frozenset[int]:
    """Fused steps from a flag, as indices into trajectories: step t starts from state T - t."""
    return frozenset(steps - t for t in parse_steps(text, steps))


def first_fused(text: str, steps: int) -> int:
    """Index of the first fused step; before it, a target is its base. `steps` if none is fused."""
    return min(fused_indices(text, steps), default=steps)


def parse_weights(text: str, steps: int = MOST_STEPS) -> tuple[float, ...] | frozenset[int]:
    """Step weights from a flag: numbers from "1, 0.5, 0", or the steps t of "equal:20-5".

    Plain "equal" is all of `steps`, and "" no numbers. Raises ValueError for what is wrong.
    """
    equal, colon, listed = text.strip().partition(":")
    if equal == "equal":
        chosen = parse_steps(listed if colon else f"{steps}-1", steps)
        if not chosen:
            raise ValueError("name at least one step, e.g. equal:20-5")
        return chosen
    weights = tuple(float(part) for part in text.split(",")) if text.strip() else ()
    if not all(0 <= w < float("inf") for w in weights):
        raise ValueError("weights must be finite and not below 0")
    if weights and not any(weights):
        raise ValueError("at least one weight must be above 0")
    if weights and steps < MOST_STEPS and len(weights) != steps:
        raise ValueError(
            f"{len(weights)} weights for {steps} steps; give one for each, t = T first"
        )
    return weights
