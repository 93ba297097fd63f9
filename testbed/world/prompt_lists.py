"""Write the prompt lists and item positions under config/prompt/.

A list has whole cycles of mistakes (hat, crown, bow): what training makes likelier for all of its
prompts alike helps none of them. Train and test prompts never say the same thing ("a above b" and
"b below a" stay together).
"""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path

import numpy as np

from testbed.world.words import (
    PROMPTS,
    SHAPES,
    TEMPLATES,
    Claim,
    all_claims,
    item_positions,
    mistaken_for,
    parse,
)

FOLDER = Path(__file__).parents[2] / "config" / "prompt"
COUNT = {1: 24, 2: 36, 3: 32}  # prompts in each of train and test
HELD_OUT = 12  # at most
SEED = 7


def cycle_of(claim: Claim) -> tuple[Claim, ...]:
    """The claims that lead to one another by mistake, from this one on."""
    cycle = [claim]
    while (following := mistaken_for(cycle[-1])) != claim:
        cycle.append(following)
    return tuple(cycle)


def _cycles(template: int) -> list[tuple[Claim, ...]]:
    """Every cycle of a template once, in random order, in turn over the shapes.

    Shapes are mixed, so that the first prompts of a list are confused in colour and in texture.
    """
    rng = np.random.default_rng((SEED, template))
    mixed = [shape for pair in zip(SHAPES[:4], SHAPES[4:], strict=True) for shape in pair]
    by_shape: dict[str, list[tuple[Claim, ...]]] = {shape: [] for shape in mixed}
    seen: set[Claim] = set()
    for claim in all_claims(template):
        if claim not in seen:
            by_shape[claim.shape].append(cycle_of(claim))
            seen |= set(by_shape[claim.shape][-1])
    orders = [[cycles[i] for i in rng.permutation(len(cycles))] for cycles in by_shape.values()]
    return [cycle for turn in zip_longest(*orders) for cycle in turn if cycle]


def split(template: int) -> tuple[list[str], list[str]]:
    """Train and test prompts of a template, each spread evenly over the shapes."""
    lists: tuple[list[Claim], list[Claim]] = [], []
    for cycle in _cycles(template):
        said = {claim.canonical for claim in cycle}
        for taken, others in (lists, lists[::-1]):
            room = COUNT[template] - len(taken) >= len(cycle)
            if room and not said & {claim.canonical for claim in others}:
                taken.extend(cycle)
                break
    return [c.prompt for c in lists[0]], [c.prompt for c in lists[1]]


def held_out(template: int) -> list[str]:
    """Whole cycles that are in neither list, one of each kind in turn: to choose settings on."""
    used = {parse(prompt).canonical for part in split(template) for prompt in part}
    free = [c for c in _cycles(template) if not used & {claim.canonical for claim in c}]
    kinds: dict[str, list[tuple[Claim, ...]]] = {}
    for cycle in free:
        kinds.setdefault(cycle[0].activity, []).append(cycle)
    turns = [cycle for turn in zip_longest(*kinds.values()) for cycle in turn if cycle]
    taken: list[Claim] = []
    for cycle in turns:
        if len(taken) + len(cycle) <= HELD_OUT:
            taken.extend(cycle)
    return [claim.prompt for claim in taken]


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def write(folder: Path = FOLDER) -> None:
    """Lists and item positions; the item file covers every prompt of the template.

    testbed1_prop_item.json names the prop alone: what behaviours are mistaken in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for template in TEMPLATES:
        train, test = split(template)
        write_json(folder / f"testbed{template}_train.json", train)
        write_json(folder / f"testbed{template}_test.json", test)
        write_json(folder / f"testbed{template}_held.json", held_out(template))
        prompts = [c.prompt for c in all_claims(template)]
        write_json(folder / f"testbed{template}_item.json", {p: item_positions(p) for p in prompts})
    props = {c.prompt: item_positions(c.prompt)[-1:] for c in all_claims(1)}
    write_json(folder / "testbed1_prop_item.json", props)


if __name__ == "__main__":
    write()
    print(f"{len(PROMPTS)} prompts; lists written to {FOLDER}")
