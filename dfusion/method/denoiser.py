"""What the method asks of a text-to-image model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from dfusion.method.prompts import Prompt
from dfusion.method.sampler import Sampler
from diffusers_patched import AttentionControl, LayerTable


@dataclass(frozen=True)
class Cond:
    """What the network reads of B prompts.

    tokens: (B, L, E), the text embeddings. extra: whatever else the model family's network takes,
    by argument name, (B, …) each: SDXL's pooled embedding and picture sizes, for example.
    """

    tokens: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @staticmethod
    def cat(parts: Sequence["Cond"]) -> "Cond":
        """The rows of all parts, one after the other."""
        names = parts[0].extra
        return Cond(
            torch.cat([part.tokens for part in parts]),
            {name: torch.cat([part.extra[name] for part in parts]) for name in names},
        )


class Denoiser(Protocol):
    """A guided denoiser whose attention can be recorded and fused; see models.diffusion_model."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """The network's precision."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        ...

    @property
    def asked_size(self) -> tuple[int, int] | None:
        """Height and width of images, in pixels; None if they are the model's own."""
        ...

    @property
    def layers(self) -> LayerTable:
        """The attention layers, numbered as in the flags."""
        ...

    def fingerprint(self) -> str:
        """Identifies the weights."""
        ...

    def sampler(self, steps: int, eta: float) -> Sampler:
        """The model's denoising process in `steps` steps."""
        ...

    def encode(self, texts: Sequence[str]) -> Cond:
        """What the network reads of these prompts."""
        ...

    def columns(self, prompt: Prompt) -> list[list[list[int]]]:
        """Token columns of the prompt's items: [item][occurrence] -> columns."""
        ...

    def map_keys(self, texts: Sequence[str]) -> Tensor | None:
        """(B, L) bool: the tokens over which item maps are normalised; None for all."""
        ...

    def doubles(self, guidance: float | None) -> bool:
        """Whether `predict` adds unconditional rows, first in the batch, to its network call."""
        ...

    def predict(
        self,
        x: Tensor,
        timestep: Tensor,
        cond: Cond,
        guidance: float | None,
        negative: str = "",
        control: AttentionControl | None = None,
        network: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Guided network output, (B, C, h, w) float32, and the maps that `control` records."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Images of latents: (B, C, h, w) -> uint8 (B, H, W, 3) on the CPU."""
        ...
