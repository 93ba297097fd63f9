"""From pairwise comparisons to one score per image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SPREAD = 2.0  # standard deviation of the prior on strengths
SMALL = 1e-10


class Outcome(NamedTuple):
    """first, second: numbers of two images. share: 1 if the first is better, 0.5 for a tie."""

    first: int
    second: int
    share: float


def strengths(count: int, outcomes: Sequence[Outcome]) -> list[float]:
    """Strengths s of `count` images: the odds that i is better than j are e^(s_i - s_j).

    The model of Bradley and Terry (1952), with a tie as half a win for both. The most likely s
    under a normal prior around 0, which keeps an image that never lost finite. Found by Newton's
    method; the problem is convex.
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
    """The score of a target that was compared with its base and its reference.

    over_base, over_reference: the share of answers that found the target better, ties as half.

    - At least as good as the reference: the reference's score or more. Eq. 7 adopts it at
      threshold 1.
    - Else, at least as good as the base: from the base's score up to below the reference's.
    - Else: less than the base's score.

    If base and reference have the same score, a target worse than the reference scores below both.
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
    """Whether the comparisons connect all images."""
    ways = [way for i, j, _ in outcomes for way in ((i, j), (j, i))]
    reached = {0}
    while more := {b for a, b in ways if a in reached} - reached:
        reached |= more
    return len(reached) == count
