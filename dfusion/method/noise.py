"""One generator per sample: a sample depends on (seed, round, index) and on nothing else."""

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, round_: int, index: int) -> torch.Generator:
    """CPU generator for one sample; different (seed, round, index) give unrelated streams."""
    state = np.random.SeedSequence((seed, round_, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def noises(
    seed: int, round_: int, index: int, steps: int, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """All the randomness of one sample: x_T (C, h, w) and step noises (T, C, h, w).

    Always float32 on the CPU, so that a seed gives the same image on every device. A target is
    denoised with the noises of its base.
    """
    rng = generator(seed, round_, index)
    x_T = torch.randn(shape, generator=rng)
    return x_T, torch.randn((steps, *shape), generator=rng)
