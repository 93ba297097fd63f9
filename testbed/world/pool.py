"""Pools of rendered scenes: drawn in several processes, one generator per scene.

Scene i of a stream depends only on (seed, i), so pools of any size agree on what they share.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from testbed.world.scenes import random_prompt, render
from testbed.world.words import PROMPTS, TEMPLATES, parse

CHUNK = 500
BY_TEMPLATE = {t: tuple(p for p in PROMPTS if parse(p).template == t) for t in TEMPLATES}


def draw(seed: int, index: int) -> tuple[str, np.ndarray]:
    """Prompt and picture, uint8 (64, 64, 3), of one scene."""
    rng = np.random.default_rng((seed, index))
    prompt = random_prompt(rng, BY_TEMPLATE)
    return prompt, render(prompt, rng).image


def _draw_chunk(seed: int, start: int, count: int) -> tuple[list[int], np.ndarray]:
    scenes = [draw(seed, start + i) for i in range(count)]
    return [PROMPTS.index(p) for p, _ in scenes], np.stack([image for _, image in scenes])


def build(seed: int, count: int, workers: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Prompt indices (count,) into PROMPTS and images, uint8 (count, 64, 64, 3)."""
    starts = range(0, count, CHUNK)
    sizes = [min(CHUNK, count - s) for s in starts]
    with ProcessPoolExecutor(workers) as executor:
        chunks = list(executor.map(partial(_draw_chunk, seed), starts, sizes))
    prompts = np.concatenate([np.asarray(p) for p, _ in chunks])
    return prompts, np.concatenate([images for _, images in chunks])


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A pool written by `python -m testbed.world.pool`."""
    with np.load(path) as data:
        return data["prompts"], data["images"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    prompts, images = build(args.seed, args.count, args.workers)
    np.savez(args.out, prompts=prompts, images=images)


if __name__ == "__main__":
    main()
