"""DDIM with noise (Song et al. 2020) as a Markov decision process.

One step is p(x_{t-1} | x_t, c) = N(mean, std^2 I) with, for the predicted noise eps,

    x0   = (x_t - sqrt(1 - a_t) eps) / sqrt(a_t)
    std  = eta sqrt((1 - a_prev) / (1 - a_t)) sqrt(1 - a_t / a_prev)
    mean = sqrt(a_prev) x0 + sqrt(1 - a_prev - std^2) eps

where a_t is diffusers' alphas_cumprod. Steps are indexed by i = 0 … T-1; the paper's t is T - i.
"""

import torch
from torch import Tensor

LOG_2PI = 1.8378770664093453


class DDIM:
    """The transition, its log-probability and KL, for a fixed schedule of T steps.

    alphas_cumprod: one value per training timestep; of 1000, usually.
    timesteps: (T,) long, descending: the timestep that the network is given at each step.
    final_alpha_cumprod: a_prev of a step whose previous timestep would be negative.
    eta: 0 is deterministic, 1 is DDPM's posterior variance.

    Raises ValueError if eta asks for more variance than a step can have.
    """

    def __init__(
        self, alphas_cumprod: Tensor, timesteps: Tensor, final_alpha_cumprod: float, eta: float
    ) -> None:
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

        self.timesteps = timesteps
        self.std = variance.clamp(min=0).sqrt().float()  # (T,)
        # mean = x_scale x_t + eps_scale eps
        self.x_scale = (a_prev / a_t).sqrt().float()
        self.eps_scale = (direction - (a_prev / a_t * (1 - a_t)).sqrt()).float()
        # eps_scale of a noise-free step (eta = 0), for inversion.
        self.eps_scale_eta0 = ((1 - a_prev).sqrt() - (a_prev / a_t * (1 - a_t)).sqrt()).float()

    def __len__(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device | str) -> "DDIM":
        """Move the tables, so that a step needs no host-device synchronisation."""
        for name in ("timesteps", "std", "x_scale", "eps_scale", "eps_scale_eta0"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    @property
    def trainable(self) -> Tensor:
        """(T,) bool: steps that have a log-probability (std > 0)."""
        return self.std > 0

    def transition(self, x: Tensor, eps: Tensor, i: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, C, h, w) and std (B,) of x_{t-1}, in float32.

        x, eps: (B, C, h, w). i: step index, one for all or (B,) long.
        """
        x_scale, eps_scale, std = (
            table[i].expand(len(x)) for table in (self.x_scale, self.eps_scale, self.std)
        )
        mean = _spread(x_scale, x) * x.float() + _spread(eps_scale, x) * eps.float()
        return mean, std

    def invert(self, x_next: Tensor, eps: Tensor, i: int) -> Tensor:
        """The x_t, (B, C, h, w), that a noise-free step with prediction eps takes to x_next."""
        return (x_next.float() - self.eps_scale_eta0[i] * eps.float()) / self.x_scale[i]

    @staticmethod
    def log_prob(x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """(B,) Gaussian log-density, averaged over dimensions: nats per dimension.

        x_next, mean: (B, C, h, w), std: (B,) > 0.
        """
        z = (x_next.float() - mean) / _spread(std, mean)
        return -0.5 * (z.square().flatten(1).mean(1) + LOG_2PI) - std.log()

    @staticmethod
    def kl(mean_p: Tensor, mean_q: Tensor, std: Tensor) -> Tensor:
        """(B,) exact KL(p || q) of two Gaussians of equal std: nats per dimension."""
        return 0.5 * ((mean_p - mean_q) / _spread(std, mean_p)).square().flatten(1).mean(1)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
