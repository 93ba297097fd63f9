"""Which denoising steps each optimiser step of a round takes, in which order, on which process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Step:
    """Step i (0 … T-1, from x_T) of pair p."""

    pair: int
    i: int


@dataclass(frozen=True)
class Update:
    """One optimiser step.

    steps: those of this process. pairs: their number over all processes. fraction: the share of
    their steps that is drawn on average; the gradient is divided by it.
    """

    steps: list[Step]
    pairs: int
    fraction: float = 1.0


def updates_of_pass(
    key: tuple[int, ...],
    pairs: int,
    updates: int,
    steps_of: Callable[[int], Sequence[int]],
    rank: int = 0,
    size: int = 1,
    fraction: float = 1.0,
) -> list[Update]:
    """The optimiser steps of one pass over a round's pairs.

    One permutation of all pairs, drawn from `key`, is cut into `updates` parts, and each part is
    divided among `size` processes, so that an optimiser step has the same pairs on any number of
    processes. steps_of(p): the steps of pair p to train on; they are shuffled too. fraction: the
    share of these steps that is drawn at random for each pair. Their number is rounded up or down
    at random, so that every step is drawn with probability `fraction`, and a sum over the drawn
    steps, divided by `fraction`, is unbiased.
    """
    rng = np.random.default_rng(key)
    found = []
    for part in np.array_split(rng.permutation(pairs), updates):
        # Sorted: in passes of one optimiser step, a process has the same pairs in every pass.
        mine = set(np.sort(part)[rank::size].tolist())
        steps = []
        for p in part.tolist():
            order = rng.permutation(steps_of(p)).tolist()  # on every process, so all draw alike
            if fraction < 1:
                order = order[: int(len(order) * fraction + rng.random())]
            steps += [Step(p, int(i)) for i in order] if p in mine else []
        found.append(Update(steps, len(part), fraction))
    return found
