"""From comparisons of two images to one number an image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SPREAD = 2.0  # standard deviation of strengths before anything is known
SMALL = 1e-10


class Outcome(NamedTuple):
    """first, second: numbers of two images. share: 1 where the first is better, 0.5 for a tie."""

    first: int
    second: int
    share: float


def strengths(count: int, outcomes: Sequence[Outcome]) -> list[float]:
    """Strengths s of `count` images, such that i is better than j with the odds e^(s_i - s_j).

    Bradley and Terry (1952), a tie as half a win for both; the most likely s under a normal prior
    around 0, which keeps an image that never lost finite. Newton's method; the problem is convex.
    """
    s = np.zeros(count)
    while True:
        gradient, hessian = -s / SPREAD**2, np.eye(count) / SPREAD**2
        for i, j, share in outcomes:
            p = 1 / (1 + np.exp(s[j] - s[i]))
            gradient[[i, j]] += (share - p, p - share)
            for a, b, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
                hessian[a, b] += sign * p * (1 - p)
        step = np.linalg.solve(hessian, gradient)
        s += step * min(1.0, 1 / max(abs(step).max(), SMALL))  # far steps may overshoot
        if abs(step).max() < SMALL:
            return s.tolist()


def between(base: float, reference: float, over_base: float, over_reference: float) -> float:
    """Score of a target that was compared with its base and its reference.

    over_base, over_reference: the share of answers that found the target better, ties as half. At
    least as good as the reference gives the reference's score or more, and is what Eq. 7 adopts at
    threshold 1; else at least as good as the base, from the base's score to below the reference's;
    else less than the base's. Where both have the same score, worse than the reference is below it.
    """
    gap = reference - base
    if over_reference >= 0.5:
        return reference + (gap or 1.0) * (over_reference - 0.5)
    if gap == 0:
        return reference - (0.5 - over_reference)
    if over_base >= 0.5:
        return base + gap * (over_base - 0.5 + over_reference)
    return base - gap * (0.5 - over_base)


def joined(count: int, outcomes: Sequence[Outcome]) -> bool:
    """Whether comparisons lead from every image to every other."""
    ways = [way for i, j, _ in outcomes for way in ((i, j), (j, i))]
    reached = {0}
    while more := {b for a, b in ways if a in reached} - reached:
        reached |= more
    return len(reached) == count
