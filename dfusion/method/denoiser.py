"""What the method asks of a text-to-image model."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from dfusion.method.prompts import Prompt
from diffusers_patched import AttentionControl, LayerTable


class Denoiser(Protocol):
    """A guided denoiser whose attention can be recorded and fused; see models.stable_diffusion."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        ...

    @property
    def layers(self) -> LayerTable:
        """The attention layers, numbered as in the flags."""
        ...

    def fingerprint(self) -> str:
        """Identifies the weights."""
        ...

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings, (B, L, E)."""
        ...

    def columns(self, prompt: Prompt) -> list[list[list[int]]]:
        """Token columns of the prompt's items: [item][occurrence] -> columns."""
        ...

    def predict(
        self,
        x: Tensor,
        timestep: Tensor,
        cond: Tensor,
        guidance: float | None,
        control: AttentionControl | None = None,
        network: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Guided noise prediction, (B, C, h, w) float32, and the maps that `control` records."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Images of latents: (B, C, h, w) -> uint8 (B, H, W, 3) on the CPU."""
        ...
