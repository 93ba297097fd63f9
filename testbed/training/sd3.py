"""SD3's architecture in training form: two CLIPs, T5 and a transformer with joint attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

from testbed.models import exchange_joint
from testbed.models import sd3 as denoiser
from testbed.training.noise import Flow
from testbed.training.stable_diffusion import part_of
from testbed.world.tokens import LENGTH, numbers


class SD3(nn.Module):
    """Text encoders and transformer; predicts the velocity."""

    first_words = (1, LENGTH)  # text tokens of a prompt's first word, CLIP's and T5's

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.tokenizer, self.words = tokenizer, denoiser.t5_tokenizer()
        self.text = denoiser.Text(tokenizer, self.words)
        self.transformer = denoiser.build()
        self.noise = Flow()
        self.plan = exchange_joint.install(self.transformer)

    def read(self, folder: Path) -> None:
        """Start from the weights of a pipeline folder, as `save` writes it.

        Of a Stable Diffusion folder, from its text encoder, which becomes the first CLIP.
        """
        if not (folder / "transformer").exists():
            self.text.read_clip(folder / "text_encoder")
            return
        for clip, name in zip(self.text.clips, ("text_encoder", "text_encoder_2"), strict=True):
            trained = CLIPTextModelWithProjection.from_pretrained(folder / name)
            clip.load_state_dict(trained.state_dict())
        t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_3")
        self.text.t5.load_state_dict(t5.state_dict())
        stock = SD3Transformer2DModel.from_pretrained(folder / "transformer")
        self.transformer.load_state_dict(stock.state_dict())

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """(P, L) token numbers, the CLIPs' before T5's."""
        return torch.cat(
            [
                numbers(tokenizer, prompts, length)
                for tokenizer, length in (
                    (self.tokenizer, LENGTH),
                    (self.words, denoiser.T5_LENGTH),
                )
            ],
            dim=1,
        )

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        """x (B, 4, 16, 16), t (B,), ids (U, L) distinct prompts, rows (B,) into ids."""
        tokens, pooled = self.text(ids)
        return self.transformer(
            x, tokens.index_select(0, rows), pooled.index_select(0, rows), t, return_dict=False
        )[0]

    def matrices(self) -> list[nn.Parameter]:
        """Weights of attention and feed-forward, which Muon trains."""
        return [
            weight
            for name, weight in self.transformer.transformer_blocks.named_parameters()
            if weight.ndim == 2 and (".attn." in name or ".ff" in name)
        ]

    def constrain(self) -> None:
        """Nothing is constrained."""

    def pipeline(self, state: dict[str, Tensor], vae: AutoencoderKL) -> StableDiffusion3Pipeline:
        """A stock pipeline with weights of our `state_dict`, transformer in half precision."""
        text = denoiser.Text(self.tokenizer, self.words)
        text.load_state_dict(part_of(state, "text"))
        transformer = SD3Transformer2DModel(**denoiser.CONFIG)
        transformer.load_state_dict(part_of(state, "transformer"))
        vae.register_to_config(shift_factor=0.0)
        return StableDiffusion3Pipeline(
            transformer=transformer.half(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=denoiser.SHIFT),
            vae=vae,
            text_encoder=text.clips[0],
            tokenizer=self.tokenizer,
            text_encoder_2=text.clips[1],
            tokenizer_2=self.tokenizer,
            text_encoder_3=text.t5,
            tokenizer_3=self.words,
        )
