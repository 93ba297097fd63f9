"""DDIM with noise (Song et al. 2020).

For the predicted noise eps and x_0, one step has

    std  = eta sqrt((1 - a_prev) / (1 - a_t)) sqrt(1 - a_t / a_prev)
    mean = sqrt(a_prev) x0 + sqrt(1 - a_prev - std^2) eps

where a_t is diffusers' alphas_cumprod. The network predicts one of eps, x_0 and
v = sqrt(a_t) eps - sqrt(1 - a_t) x_0 (Salimans & Ho 2022); the others follow from
x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps.
"""

import torch
from torch import Tensor

from dfusion.method.sampler import Sampler

PREDICTIONS = ("epsilon", "v_prediction", "sample")  # as in diffusers' scheduler settings


def ddim(
    alphas_cumprod: Tensor,
    timesteps: Tensor,
    final_alpha_cumprod: float,
    eta: float,
    prediction: str = "epsilon",
) -> Sampler:
    """DDIM's tables.

    alphas_cumprod: one value per training timestep; of 1000, usually. timesteps: (T,) long,
    descending. final_alpha_cumprod: a_prev of a step whose previous timestep would be negative.
    eta: 0 is deterministic, 1 is DDPM's posterior variance. prediction: one of PREDICTIONS.

    Raises ValueError if eta asks for more variance than a step can have.
    """
    alphas = alphas_cumprod.double().cpu()
    timesteps = timesteps.cpu()
    previous = timesteps - len(alphas) // len(timesteps)  # as in diffusers, for any spacing
    final = torch.tensor(final_alpha_cumprod, dtype=torch.float64)
    a_t = alphas[timesteps]
    a_prev = torch.where(previous >= 0, alphas[previous.clamp(min=0)], final)
    variance = eta**2 * (1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)
    if (1 - a_prev - variance < -1e-12).any():
        raise ValueError(f"eta {eta} asks for more variance than a step of this schedule has")
    direction = (1 - a_prev - variance).clamp(min=0).sqrt()
    x_scale, output_scale = _scales(a_t, a_prev, direction, prediction)
    still = _scales(a_t, a_prev, (1 - a_prev).sqrt(), prediction)
    std = variance.clamp(min=0).sqrt()
    aims = _aims(a_t, prediction)
    tables = (x_scale, output_scale, std, *still, a_t.sqrt(), (1 - a_t).sqrt(), *aims)
    return Sampler(timesteps, *(table.float() for table in tables))


def _scales(
    a_t: Tensor, a_prev: Tensor, direction: Tensor, prediction: str
) -> tuple[Tensor, Tensor]:
    """(T,) each: the factors of x_t and of the network's output in the mean."""
    if prediction == "epsilon":
        x_scale = (a_prev / a_t).sqrt()
        return x_scale, direction - (a_prev / a_t * (1 - a_t)).sqrt()
    if prediction == "v_prediction":
        x_scale = (a_prev * a_t).sqrt() + direction * (1 - a_t).sqrt()
        return x_scale, direction * a_t.sqrt() - (a_prev * (1 - a_t)).sqrt()
    x_scale = direction / (1 - a_t).sqrt()
    return x_scale, a_prev.sqrt() - direction * (a_t / (1 - a_t)).sqrt()


def _aims(a_t: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
    """(T,) each: the factors of x_0 and of noise in what the network predicts."""
    none, all_ = torch.zeros_like(a_t), torch.ones_like(a_t)
    if prediction == "epsilon":
        return none, all_
    return (-(1 - a_t).sqrt(), a_t.sqrt()) if prediction == "v_prediction" else (all_, none)
