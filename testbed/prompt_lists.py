"""Write the prompt lists, item positions and mask thresholds under config/prompt/.

Train and test prompts never say the same thing ("a above b" and "b below a" stay together).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from testbed.words import PROMPTS, SHAPES, TEMPLATES, Claim, all_claims, item_positions

FOLDER = Path(__file__).parent.parent / "config" / "prompt"
COUNT = {1: 16, 2: 32, 3: 32}  # prompts in each of train and test
SEED = 7


def split(template: int) -> tuple[list[str], list[str]]:
    """Train and test prompts of a template, each spread evenly over the shapes."""
    rng = np.random.default_rng((SEED, template))
    by_shape: dict[str, list[Claim]] = {shape: [] for shape in SHAPES}
    for claim in all_claims(template):
        by_shape[claim.shape].append(claim)
    for claims in by_shape.values():
        rng.shuffle(claims)
    turns = [claims[i] for i in range(max(map(len, by_shape.values())))
             for claims in by_shape.values() if i < len(claims)]  # fmt: skip
    train: list[Claim] = []
    test: list[Claim] = []
    for claim in turns:
        taken = train if len(train) < COUNT[template] else test
        others = test if taken is train else train
        if len(taken) < COUNT[template] and claim.canonical not in [c.canonical for c in others]:
            taken.append(claim)
    return [c.prompt for c in train], [c.prompt for c in test]


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def write(folder: Path = FOLDER) -> None:
    """Lists and item positions; the item file covers every prompt of the template."""
    folder.mkdir(parents=True, exist_ok=True)
    for template in TEMPLATES:
        train, test = split(template)
        write_json(folder / f"testbed{template}_train.json", train)
        write_json(folder / f"testbed{template}_test.json", test)
        prompts = [c.prompt for c in all_claims(template)]
        write_json(folder / f"testbed{template}_item.json", {p: item_positions(p) for p in prompts})


if __name__ == "__main__":
    write()
    print(f"{len(PROMPTS)} prompts; lists written to {FOLDER}")
