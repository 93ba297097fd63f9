"""Who is fused with whom (Algorithm 1), and which targets are kept (Eq. 7)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pair:
    """Sample indices, within a round, of one prompt's reference (better) and base (worse)."""

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
# asked. To add one, put it into RULES, or pass it as --config.pair.rule module:name.
Rule = Callable[[Group], list[tuple[int, int]]]


def halves(group: Group) -> list[tuple[int, int]]:
    """Algorithm 1: zip(top half, bottom half); of an odd number, the middle one is left out."""
    half = len(group.scores) // 2
    bases = group.ranked[len(group.scores) - half :]
    return list(zip(group.ranked[:half], bases, strict=True))


def quarter(group: Group) -> list[tuple[int, int]]:
    """The released code: the top quarter, each twice, against the bottom half."""
    half = len(group.scores) // 2
    bases = group.ranked[len(group.scores) - half :]
    references = [n for n in group.ranked[: -(-half // 2)] for _ in range(2)][:half]
    return list(zip(references, bases, strict=True))


RULES: dict[str, Rule] = {"halves": halves, "quarter": quarter}


def pair(
    prompts: Sequence[str],
    scores: Sequence[float],
    rule: Rule = halves,
    image: Callable[[int], Any] = lambda index: None,
) -> tuple[Pair, ...]:
    """Pairs of a round, grouped by prompt in order of first appearance.

    prompts, scores: per sample. image(i): sample i's image, for rules that look at them.
    """
    members: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(index)
    pairs: list[Pair] = []
    for prompt, places in members.items():
        group = Group(prompt, [scores[i] for i in places], lambda n, at=places: image(at[n]))  # type: ignore[misc]
        pairs += [Pair(prompt, places[reference], places[base]) for reference, base in rule(group)]
    return tuple(pairs)


def per_prompt(images: int) -> int:
    """Number of pairs that the rules above make from `images` samples of a prompt."""
    return images // 2


def adopted(target: float, base: float, reference: float, threshold: float) -> bool:
    """Eq. 7: R(a) - R(b) >= threshold * (R(r) - R(b)), for scores R of the three images.

    A target that is not adopted is replaced by the reference.
    """
    return target - base >= threshold * (reference - base)
