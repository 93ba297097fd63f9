"""A denoising process as a Markov decision process: T steps with Gaussian transitions.

One step is p(x_{t-1} | x_t, c) = N(mean, std^2 I), where the mean is linear in the state and in the
network's output (predicted noise, velocity or x_0):

    mean = x_scale x_t + output_scale output

`ddim` makes the tables for diffusion models, `flow` for flow matching. Steps are indexed by
i = 0 … T-1; the paper's t is T - i.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

LOG_2PI = 1.8378770664093453


@dataclass(frozen=True)
class Sampler:
    """The tables of T steps, (T,) each.

    timesteps: what the network is given at each step. x_scale, output_scale, std: see above.
    x_scale_still, output_scale_still: the same of a step without noise, which inversion reverses.
    signal, noise: x_t is signal x_0 + noise n, with standard normal n. aim_x0, aim_noise: the
    output that the network should then have is aim_x0 x_0 + aim_noise n.
    """

    timesteps: Tensor
    x_scale: Tensor
    output_scale: Tensor
    std: Tensor
    x_scale_still: Tensor
    output_scale_still: Tensor
    signal: Tensor
    noise: Tensor
    aim_x0: Tensor
    aim_noise: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device | str) -> "Sampler":
        """The tables on a device, so that a step needs no host-device synchronisation."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @property
    def trainable(self) -> Tensor:
        """(T,) bool: steps that have a log-probability (std > 0)."""
        return self.std > 0

    def mean_factors(self) -> list[tuple[float, float]]:
        """At each step, the factors of x_0, as the network predicts it, and of x_t in the mean."""
        of_noise = self.aim_noise / self.noise  # as n = (x_t - signal x_0) / noise
        x0 = self.output_scale * (self.aim_x0 - of_noise * self.signal)
        x_t = self.x_scale + self.output_scale * of_noise
        return [(round(a, 9), round(b, 9)) for a, b in zip(x0.tolist(), x_t.tolist(), strict=True)]

    def quiet(self, steps: Collection[int]) -> "Sampler":
        """The same process without noise at these steps (indices)."""
        still = torch.tensor([i in steps for i in range(len(self))], device=self.std.device)
        return replace(
            self,
            x_scale=torch.where(still, self.x_scale_still, self.x_scale),
            output_scale=torch.where(still, self.output_scale_still, self.output_scale),
            std=self.std.masked_fill(still, 0),
        )

    def transition(self, x: Tensor, output: Tensor, i: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, C, h, w) and std (B,) of x_{t-1}, in float32.

        x, output: (B, C, h, w). i: step index, one for all or (B,) long.
        """
        x_scale, output_scale, std = (
            table[i].expand(len(x)) for table in (self.x_scale, self.output_scale, self.std)
        )
        mean = _spread(x_scale, x) * x.float() + _spread(output_scale, x) * output.float()
        return mean, std

    def noised(self, x0: Tensor, n: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        """x_t made from x_0 and noise, and the output that the network should then have.

        x0, n: (B, C, h, w). i: (B,) long. Returns two tensors of x0's shape.
        """
        signal, noise, aim_x0, aim_noise = (
            _spread(table[i], x0)
            for table in (self.signal, self.noise, self.aim_x0, self.aim_noise)
        )
        return signal * x0 + noise * n, aim_x0 * x0 + aim_noise * n

    def invert(self, x_next: Tensor, output: Tensor, i: int) -> Tensor:
        """The x_t, (B, C, h, w), that a step without noise takes to x_next."""
        moved = x_next.float() - self.output_scale_still[i] * output.float()
        return moved / self.x_scale_still[i]

    @staticmethod
    def log_prob(x_next: Tensor, mean: Tensor, std: Tensor, cells: Tensor | None = None) -> Tensor:
        """(B,) Gaussian log-density, averaged over dimensions: nats per dimension.

        x_next, mean: (B, C, h, w), std: (B,) > 0. cells: (B, h, w), their weights in the average,
        1 on average; None if all are 1.
        """
        squares = ((x_next.float() - mean) / _spread(std, mean)).square()
        if cells is not None:
            squares = squares * cells[:, None]
        return -0.5 * (squares.flatten(1).mean(1) + LOG_2PI) - std.log()

    @staticmethod
    def kl(mean_p: Tensor, mean_q: Tensor, std: Tensor) -> Tensor:
        """(B,) exact KL(p || q) of two Gaussians of equal std: nats per dimension."""
        return 0.5 * ((mean_p - mean_q) / _spread(std, mean_p)).square().flatten(1).mean(1)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
