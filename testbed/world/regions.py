"""Where the items of a pool's scenes are, on the denoiser's 8x8 grid.

python -m testbed.world.regions --seed 1 --count 12000 --out regions.safetensors
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from testbed.world.pool import BY_TEMPLATE
from testbed.world.scenes import random_prompt, render

GRID = 8
ITEMS = 2


def region(seed: int, index: int) -> np.ndarray:
    """Share of each cell that each item covers, in 1/255: uint8 (2, 8, 8); scene as in pool.py."""
    rng = np.random.default_rng((seed, index))
    items = render(random_prompt(rng, BY_TEMPLATE), rng).items
    size = items.shape[-1] // GRID
    share = items.reshape(len(items), GRID, size, GRID, size).mean(axis=(2, 4))
    padded = np.zeros((ITEMS, GRID, GRID))
    padded[: len(share)] = share
    return np.round(padded * 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with ProcessPoolExecutor(args.workers) as executor:
        found = list(executor.map(partial(region, args.seed), range(args.count), chunksize=200))
    save_file({"regions": torch.from_numpy(np.stack(found))}, args.out)


if __name__ == "__main__":
    main()
