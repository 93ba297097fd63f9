"""A denoising process as a Markov decision process: T steps with Gaussian transitions.

One step is p(x_{t-1} | x_t, c) = N(mean, std^2 I), where the mean is linear in the state and in the
network's output (predicted noise, velocity or x_0):

    mean = x_scale x_t + output_scale output

`ddim` makes the tables for diffusion models, `flow` for flow matching. Steps are indexed by
i = 0 … T-1; the paper's t is T - i.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

LOG_2PI = 1.8378770664093453


@dataclass(frozen=True)
class Sampler:
    """The tables of T steps, (T,) each.

    timesteps: what the network is given at each step. x_scale, output_scale, std: see above.
    x_scale_still, output_scale_still: the same of a step without noise, which inversion reverses.
    """

    timesteps: Tensor
    x_scale: Tensor
    output_scale: Tensor
    std: Tensor
    x_scale_still: Tensor
    output_scale_still: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device | str) -> "Sampler":
        """The tables on a device, so that a step needs no host-device synchronisation."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @property
    def trainable(self) -> Tensor:
        """(T,) bool: steps that have a log-probability (std > 0)."""
        return self.std > 0

    def transition(self, x: Tensor, output: Tensor, i: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, C, h, w) and std (B,) of x_{t-1}, in float32.

        x, output: (B, C, h, w). i: step index, one for all or (B,) long.
        """
        x_scale, output_scale, std = (
            table[i].expand(len(x)) for table in (self.x_scale, self.output_scale, self.std)
        )
        mean = _spread(x_scale, x) * x.float() + _spread(output_scale, x) * output.float()
        return mean, std

    def invert(self, x_next: Tensor, output: Tensor, i: int) -> Tensor:
        """The x_t, (B, C, h, w), that a step without noise takes to x_next."""
        moved = x_next.float() - self.output_scale_still[i] * output.float()
        return moved / self.x_scale_still[i]

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
