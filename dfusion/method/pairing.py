"""Who is fused with whom (Algorithm 1), and which targets are kept (Eq. 7)."""

from collections.abc import Sequence
from dataclasses import dataclass

RULES = ("halves", "quarter")
ADOPTIONS = ("eq7", "all")


@dataclass(frozen=True)
class Pair:
    """Sample indices, within a round, of one prompt's reference (better) and base (worse)."""

    prompt: str
    reference: int
    base: int


def pair(prompts: Sequence[str], scores: Sequence[float], rule: str = "halves") -> tuple[Pair, ...]:
    """Pairs of a round, grouped by prompt in order of first appearance.

    prompts, scores: per sample. Samples of a prompt are sorted by score, best first; ties keep
    their order. "halves" (Algorithm 1): zip(top half, bottom half); an odd one in the middle is
    left out.
    "quarter" (released code): the top quarter, each twice, against the bottom half.
    """
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(index)
    pairs: list[Pair] = []
    for prompt, members in groups.items():
        ranked = sorted(members, key=lambda i: -scores[i])
        half = len(ranked) // 2
        bases = ranked[len(ranked) - half :]
        if rule == "halves":
            references = ranked[:half]
        elif rule == "quarter":
            references = [i for i in ranked[: -(-half // 2)] for _ in range(2)][:half]
        else:
            raise ValueError(f"unknown pairing rule '{rule}'; choose from {RULES}")
        pairs += [Pair(prompt, r, b) for r, b in zip(references, bases, strict=True)]
    return tuple(pairs)


def per_prompt(images: int) -> int:
    """How many pairs so many samples of a prompt make, by either rule."""
    return images // 2


def adopted(target: float, base: float, reference: float, threshold: float) -> bool:
    """Eq. 7: R(a) - R(b) >= threshold * (R(r) - R(b)), for scores R of the three images.

    A target that is not adopted is replaced by the reference.
    """
    return target - base >= threshold * (reference - base)
