"""The pairing rules by name, and a round's pairs by any rule.

To add a rule, put it into a file of its own and into RULES, or pass it as --config.pair.rule
module:name.
"""

from collections.abc import Callable, Sequence
from typing import Any

from dfusion.method.pairing.both_ways import both_ways
from dfusion.method.pairing.contract import Group, Pair, Rule
from dfusion.method.pairing.halves import halves
from dfusion.method.pairing.quarter import quarter

RULES: dict[str, Rule] = {"halves": halves, "quarter": quarter, "both_ways": both_ways}


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

    def group_of(prompt: str, places: list[int]) -> Group:
        return Group(prompt, [scores[i] for i in places], lambda n: image(places[n]))

    pairs: list[Pair] = []
    for prompt, places in members.items():
        chosen = rule(group_of(prompt, places))
        pairs += [Pair(prompt, places[reference], places[base]) for reference, base in chosen]
    return tuple(pairs)


def per_prompt(images: int, rule: str) -> int:
    """Number of pairs that one of RULES makes from `images` samples of a prompt; half as many as
    images for any other rule.
    """
    group = Group("", [0.0] * images, lambda n: None)
    return len(RULES.get(rule, halves)(group))
