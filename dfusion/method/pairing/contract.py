"""What a pairing rule is given and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pair:
    """Sample indices, within a round, of one prompt's reference and base.

    The reference is the better of the two, except in the exchanged pairs of both_ways.py.
    """

    prompt: str
    reference: int
    base: int


@dataclass(frozen=True)
class Group:
    """The samples of one prompt in a round. scores: one per sample. image(n): a PIL image."""

    prompt: str
    scores: Sequence[float]
    image: Callable[[int], Any]

    @property
    def ranked(self) -> list[int]:
        """Positions in the group, best first; ties keep their order."""
        return sorted(range(len(self.scores)), key=lambda n: -self.scores[n])


# A pairing rule returns pairs (reference, base) of positions in the group, the same whenever it is
# asked.
Rule = Callable[[Group], list[tuple[int, int]]]
