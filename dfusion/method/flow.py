"""Flow matching as a Markov chain (coefficient-preserving sampling, Wang & Yu 2025).

A state is x = (1 - sigma) x_0 + sigma n, and the network predicts the velocity v = n - x_0. From
sigma to sigma' < sigma, a step has

    std  = sigma' sqrt(1 - rho^(2 eta^2)),   rho = sigma' (1 - sigma) / (sigma (1 - sigma'))
    mean = (1 - sigma') x_0 + sqrt(sigma'^2 - std^2) n,   x_0 = x - sigma v,   n = x + (1 - sigma) v

with the noise of Precise (2605.23522), whose eta is sqrt(2) times this one. eta = 0 is Euler's
method; eta = 1 adds as much noise as DDIM does with eta = 1. The last step, to sigma' = 0, has no
noise.
"""

import torch
from torch import Tensor

from dfusion.method.sampler import Sampler


def flow(sigmas: Tensor, eta: float, scale: float = 1000.0) -> Sampler:
    """The tables of T steps.

    sigmas: (T+1,), descending, the last one 0. eta: noise, see above. scale: the network is given
    the timestep scale * sigma.
    """
    sigmas = sigmas.double().cpu()
    now, then = sigmas[:-1], sigmas[1:]
    rho = then * (1 - now) / (now * (1 - then))  # 0 at sigma = 1: the state is forgotten
    std = then * (1 - rho ** (2 * eta**2)).sqrt() if eta else torch.zeros_like(then)
    still = _scales(now, then, torch.zeros_like(std))
    forward = (1 - now, now, -torch.ones_like(now), torch.ones_like(now))
    tables = (*_scales(now, then, std), std, *still, *forward)
    return Sampler((scale * now).float(), *(table.float() for table in tables))


def _scales(now: Tensor, then: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """(T,) each: the factors of x and of v in the mean."""
    noise = (then.square() - std.square()).sqrt()
    return (1 - then) + noise, noise * (1 - now) - (1 - then) * now
