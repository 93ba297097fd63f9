"""A trained Stable Diffusion folder teaches a flow model what scene a noisy latent leads to.

The mean scene that a denoiser predicts varies far less than the scene a latent was made from, so
that a student learns from it in fewer batches (Salimans & Ho, 2022, train students in this way).
What the teacher mistakes, the student mistakes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from testbed.world.tokens import numbers
from testbed.world.words import PROMPTS

HIGHEST = 900  # time above which rounding in the teacher's prediction outweighs what it knows


class Teacher:
    """Scenes as predicted by the folder's denoiser, for prompts as indices into PROMPTS or ""."""

    @torch.no_grad()
    def __init__(self, folder: Path) -> None:
        pipe = StableDiffusionPipeline.from_pretrained(folder)
        self.unet = pipe.unet.requires_grad_(False).eval()
        self.texts = pipe.text_encoder(numbers(pipe.tokenizer, [*PROMPTS, ""]))[0]
        self.signal = pipe.scheduler.alphas_cumprod
        noise = (1 - self.signal).sqrt()
        self.sigmas = noise / (noise + self.signal.sqrt())  # of flow matching, at equal ratios

    @torch.no_grad()
    def scenes(self, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        """(B, 4, 16, 16) of flow matching's latents x at times t (B,) and prompts (B,).

        The time is the teacher's with the nearest ratio of signal and noise.
        """
        sigma = t / 1000
        above = torch.searchsorted(self.sigmas, sigma).clamp(1, len(self.sigmas) - 1)
        below = above - 1
        closer = sigma - self.sigmas[below] < self.sigmas[above] - sigma
        step = torch.where(closer, below, above)
        signal, noise = (
            root.sqrt().view(-1, 1, 1, 1) for root in (self.signal[step], 1 - self.signal[step])
        )
        latent = x * (signal + noise)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = self.unet(latent, step, self.texts[prompt], return_dict=False)[0]
        return (latent - noise * predicted.float()) / signal
