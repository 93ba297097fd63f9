"""Algorithm 1 and Eq. 7 against hand-worked cases."""

import pytest

from dfusion.method.pairing import RULES, Group, Pair, adopted, pair, per_prompt


def test_halves_by_hand() -> None:
    prompts = ["p", "q", "p", "q", "p", "q", "p", "q"]
    scores = [0.1, 0.5, 0.4, 0.2, 0.3, 0.9, 0.2, 0.1]
    # p: 2 (.4) 4 (.3) | 6 (.2) 0 (.1);  q: 5 (.9) 1 (.5) | 3 (.2) 7 (.1)
    assert pair(prompts, scores) == (
        Pair("p", 2, 6),
        Pair("p", 4, 0),
        Pair("q", 5, 3),
        Pair("q", 1, 7),
    )


def test_quarter_uses_the_top_quarter_twice() -> None:
    scores = [0.1, 0.8, 0.3, 0.6, 0.5, 0.4, 0.7, 0.2]
    # order: 1 6 3 4 | 5 2 7 0; the top quarter is 1, 6
    expected = [(1, 5), (1, 2), (6, 7), (6, 0)]
    assert [(p.reference, p.base) for p in pair(["p"] * 8, scores, RULES["quarter"])] == expected


def test_both_ways_by_hand() -> None:
    scores = [0.1, 0.4, 0.3, 0.2]  # 1 2 | 3 0
    expected = [(1, 3), (2, 0), (3, 1), (0, 2)]
    assert [(p.reference, p.base) for p in pair(["p"] * 4, scores, RULES["both_ways"])] == expected


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("images", [1, 2, 5, 8])
def test_number_of_pairs(rule: str, images: int) -> None:
    assert per_prompt(images, rule) == len(pair(["p"] * images, [0.5] * images, RULES[rule]))
    assert per_prompt(images, "mine:rule") == images // 2


@pytest.mark.parametrize("rule", ["halves", "quarter"])
def test_odd_one_is_left_out_and_ties_keep_their_order(rule: str) -> None:
    assert [(p.reference, p.base) for p in pair(["p"] * 3, [0.5, 0.5, 0.5], RULES[rule])] == [
        (0, 2)
    ]
    assert pair(["p"], [1.0], RULES[rule]) == ()


def test_a_rule_of_ones_own_sees_prompts_scores_and_images() -> None:
    """Here: the image that is darkest is the base of all others."""
    brightness = [3, 1, 2, 9, 8, 7]

    def darkest(group: Group) -> list[tuple[int, int]]:
        values = [group.image(n) for n in range(len(group.scores))]
        base = values.index(min(values))
        return [(n, base) for n in range(len(values)) if n != base and group.prompt == "p"]

    found = pair(["p", "q"] * 3, [0.0] * 6, darkest, brightness.__getitem__)
    assert found == (Pair("p", 0, 2), Pair("p", 4, 2))


def test_reference_always_scores_at_least_as_well() -> None:
    scores = [((i * 37) % 11) / 11 for i in range(40)]
    for rule in ("halves", "quarter"):
        for p in pair(["p", "q"] * 20, scores, RULES[rule]):
            assert scores[p.reference] >= scores[p.base]


@pytest.mark.parametrize(
    ("target", "base", "reference", "threshold", "kept"),
    [
        (0.30, 0.20, 0.30, 1.0, True),  # 0.10 >= 0.10
        (0.29, 0.20, 0.30, 1.0, False),
        (0.26, 0.20, 0.30, 0.5, True),  # 0.06 >= 0.05
        (0.24, 0.20, 0.30, 0.5, False),
        (0.20, 0.20, 0.30, 0.0, True),
        (0.19, 0.20, 0.30, 0.0, False),
        (0.20, 0.30, 0.20, 1.0, True),  # exchanged: as bad as the reference
        (0.21, 0.30, 0.20, 1.0, False),
        (0.24, 0.30, 0.20, 0.5, True),  # -0.06 <= -0.05
        (0.26, 0.30, 0.20, 0.5, False),
    ],
)
def test_eq7_by_hand(
    target: float, base: float, reference: float, threshold: float, kept: bool
) -> None:
    # The powers of two keep the differences exact.
    assert adopted(target * 64, base * 64, reference * 64, threshold) is kept
