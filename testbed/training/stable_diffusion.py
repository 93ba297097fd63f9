"""Stable Diffusion's architecture in training form: CLIP text encoder and UNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from testbed.models import exchange
from testbed.models import unet as denoiser
from testbed.models.clip import clip_config
from testbed.training.noise import Diffusion
from testbed.world.tokens import numbers

TEXT_WIDTH = 128


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(clip_config(tokenizer, TEXT_WIDTH))


class StableDiffusion(nn.Module):
    """Text encoder and denoiser; predicts the noise."""

    first_words = (1,)  # text token of a prompt's first word

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text = text_encoder(tokenizer)
        self.unet, self.thinned = denoiser.build()
        self.tokenizer, self.noise = tokenizer, Diffusion()
        self.plan = exchange.install(self.unet)

    def read(self, folder: Path) -> None:
        """Start from the weights of a pipeline folder, as `save` writes it."""
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder")
        stock = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
        self.unet.load_state_dict(denoiser.training_state(stock, self.thinned))

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """(P, L) token numbers."""
        return numbers(self.tokenizer, prompts)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        """x (B, 4, 16, 16), t (B,), ids (U, L) distinct prompts, rows (B,) into ids."""
        context = self.text(ids)[0][rows]
        return self.unet(x, t, context, return_dict=False)[0]

    def matrices(self) -> list[nn.Parameter]:
        """Weights that Muon trains: none."""
        return []

    def constrain(self) -> None:
        """To be called after each optimiser step."""
        denoiser.constrain(self.unet)

    def pipeline(self, state: dict[str, Tensor], vae: AutoencoderKL) -> StableDiffusionPipeline:
        """A stock pipeline with weights of our `state_dict`, denoiser in half precision."""
        text = text_encoder(self.tokenizer)
        text.load_state_dict(part_of(state, "text"))
        unet = UNet2DConditionModel(**denoiser.CONFIG)
        unet.load_state_dict(denoiser.stock_state(part_of(state, "unet"), self.thinned))
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=text,
            tokenizer=self.tokenizer,
            unet=unet.half(),
            scheduler=DDIMScheduler(**denoiser.SCHEDULE),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def part_of(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of one submodule."""
    return {k[len(name) + 1 :]: v for k, v in state.items() if k.startswith(f"{name}.")}
