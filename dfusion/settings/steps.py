"""Parsing of the flags for fused steps and step weights."""

import re

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


def parse_weights(text: str) -> tuple[float, ...]:
    """ "1, 0.5, 0" -> (1.0, 0.5, 0.0); raises ValueError for anything but numbers from 0."""
    weights = tuple(float(part) for part in text.split(",")) if text.strip() else ()
    if not all(0 <= w < float("inf") for w in weights):
        raise ValueError("weights must be finite and not below 0")
    if weights and not any(weights):
        raise ValueError("at least one weight must be above 0")
    return weights
