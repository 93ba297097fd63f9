"""How latents are noised, what is predicted, and how its errors are weighed.

`aim` is what the prediction leads to, `shown` what the noisy latent shows; they are the same except
in rows that take part in an exchange (models/exchange.py).
"""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from testbed.models.unet import SCHEDULE

NOISE_BIAS = 0.6  # t = 1000 u^0.6: more high noise, where layout is decided
WEIGHTING = 0.4  # weight of an error = (signal-to-noise ratio)^-0.4
LOGIT_MEAN, LOGIT_STD = 0.5, 1.2  # sigma = sigmoid of a normal, with more high noise than SD3's


class Diffusion:
    """Stable Diffusion's: noise is predicted."""

    def __init__(self) -> None:
        self.signal = DDIMScheduler(**SCHEDULE).alphas_cumprod

    def times(self, size: int) -> Tensor:
        return (1000 * torch.rand(size) ** NOISE_BIAS).long().clamp(max=999)

    def add(self, shown: Tensor, t: Tensor) -> Tensor:
        """Noisy latents (B, 4, 16, 16)."""
        a = self.signal[t].view(-1, 1, 1, 1)
        return a.sqrt() * shown + (1 - a).sqrt() * torch.randn_like(shown)

    def wanted(self, x: Tensor, aim: Tensor, t: Tensor) -> Tensor:
        """What is to be predicted; (B, 4, 16, 16)."""
        a = self.signal[t].view(-1, 1, 1, 1)
        return (x - a.sqrt() * aim) / (1 - a).sqrt()

    def weight(self, t: Tensor) -> Tensor:
        """(B,) weights of the squared error, larger where the signal is weak."""
        ratio = self.signal[t] / (1 - self.signal[t])
        return (ratio**-WEIGHTING).clamp(0.2, 4)


class Flow:
    """SD3's flow matching: velocity is predicted, at t = 1000 sigma."""

    def times(self, size: int) -> Tensor:
        return 1000 * torch.sigmoid(LOGIT_MEAN + LOGIT_STD * torch.randn(size))

    def add(self, shown: Tensor, t: Tensor) -> Tensor:
        sigma = (t / 1000).view(-1, 1, 1, 1)
        return (1 - sigma) * shown + sigma * torch.randn_like(shown)

    def wanted(self, x: Tensor, aim: Tensor, t: Tensor) -> Tensor:
        return (x - aim) / (t / 1000).view(-1, 1, 1, 1)

    def weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


Noise = Diffusion | Flow
