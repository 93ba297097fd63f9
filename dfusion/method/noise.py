"""One generator per sample: a sample depends on (seed, round, index) and on nothing else."""

import numpy as np
import torch
from torch import Tensor

# Marks of further streams of a sample or pair. Not 0, which SeedSequence would not tell from none.
OTHER, FORWARD = 1, 2


def generator(seed: int, round_: int, index: int, *more: int) -> torch.Generator:
    """CPU generator for one sample; different (seed, round, index) give unrelated streams.

    more: numbers of a further stream of the sample; the last is its mark.
    """
    state = np.random.SeedSequence((seed, round_, index, *more)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def noises(
    seed: int, round_: int, index: int, steps: int, shape: tuple[int, ...], *more: int
) -> tuple[Tensor, Tensor]:
    """All the randomness of one sample: x_T (C, h, w) and step noises (T, C, h, w).

    Always float32 on the CPU, so that a seed gives the same image on every device. A fused target
    is denoised with the noises of its base. more: see `generator`.
    """
    rng = generator(seed, round_, index, *more)
    x_T = torch.randn(shape, generator=rng)
    return x_T, torch.randn((steps, *shape), generator=rng)
