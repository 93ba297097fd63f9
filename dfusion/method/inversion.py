"""DDIM inversion: a denoising trajectory guessed from a clean image (the paper's Section 4.4).

Going up from x_0, the noise at x_t is approximated by the network's prediction at x_{t-1} (Song et
al. 2020). The guess is known to be rough; the paper trains on it to show that targets need their
own trajectories.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dfusion.method.sampling import Policy


@torch.no_grad()
def invert(policy: Policy, x0: Tensor, texts: Sequence[str]) -> Tensor:
    """Guessed states x_T … x_0, (B, T+1, C, h, w), rounded as stored states are.

    x0: (B, C, h, w) clean latents. The network predicts with the prompt but, as is usual, without
    guidance, which would make the guess diverge (Mokady et al. 2022).
    """
    sampler = policy.sampler
    unguided = replace(policy, guidance=None)
    cond = policy.model.encode(list(texts))
    states = [policy.rounded(x0.to(policy.model.device))]
    for i in reversed(range(len(sampler))):
        output, _ = unguided.predict(states[-1], i, cond)
        states.append(policy.rounded(sampler.invert(states[-1], output, i)))
    return torch.stack(states[::-1], 1).to(policy.store_dtype).cpu()
