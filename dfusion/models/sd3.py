"""SD3 and SD3.5: a transformer with joint attention, two CLIPs and T5, flow matching."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from dfusion.errors import UserError
from dfusion.method.denoiser import Cond
from dfusion.method.flow import flow
from dfusion.method.prompts import Prompt, item_columns
from dfusion.method.sampler import Sampler
from dfusion.models.diffusion_model import DiffusionModel, Part
from dfusion.models.stable_diffusion import CLIP_TOKENIZER, clip_columns
from diffusers_patched import AttentionControl, LayerTable, SD3Transformer2DModel

T5_TOKENS = 256  # diffusers' max_sequence_length


class SD3(DiffusionModel):
    """SD3 or SD3.5, with or without T5.

    An item has columns among CLIP's tokens and among T5's; its map is their mean. Maps share
    attention out among the prompt's own tokens, because image keys and padding would take most of
    it. Sampled as a Markov chain with the noise of sample.eta, see method.flow; the last step has
    none and is not trained on.
    """

    pipeline = StableDiffusion3Pipeline
    overlay = SD3Transformer2DModel
    network_name = "transformer"
    sampling = "flow matching"
    encoders: ClassVar = {
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }
    parts: ClassVar = {
        "transformer": Part("diffusers", ("SD3Transformer2DModel",)),
        "vae": Part("diffusers", ("AutoencoderKL",)),
        "text_encoder": Part("transformers", ("CLIPTextModelWithProjection",)),
        "text_encoder_2": Part("transformers", ("CLIPTextModelWithProjection",)),
        "text_encoder_3": Part("transformers", ("T5EncoderModel",), optional=True),
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": CLIP_TOKENIZER,
        "tokenizer_3": Part(
            "transformers",
            ("T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
            "tokenizer_config.json",
            optional=True,
        ),
        "scheduler": Part("diffusers", (), "scheduler_config.json"),
    }
    without: ClassVar = {"feature_extractor": None, "image_encoder": None}

    @classmethod
    def check_settings(cls, settings: Mapping[str, Mapping[str, Any]], name: str) -> None:
        transformer, vae = settings["transformer"], settings["vae"]
        channels = transformer.get("in_channels", 16)
        if channels != vae.get("latent_channels", 4):
            raise UserError(
                f"{name}: its transformer takes {channels} channels, its VAE has "
                f"{vae.get('latent_channels', 4)}; these are parts of two models"
            )
        kind = settings["scheduler"].get("_class_name", "FlowMatchEulerDiscreteScheduler")
        if kind != "FlowMatchEulerDiscreteScheduler":
            raise UserError(
                f"{name}: its scheduler is {kind}; flow matching needs "
                "FlowMatchEulerDiscreteScheduler"
            )

    @property
    def layers(self) -> LayerTable:
        return self.network.layer_table(self.latent_shape[1:])

    @property
    def side_multiple(self) -> int:
        return self.pixels_per_cell * self.network.config.patch_size

    def sampler(self, steps: int, eta: float) -> Sampler:
        """Steps of equal size in sigma, 1 to 1 / T, before the model's shift.

        SD3's own default ends at a sigma of 0.009, where one step would outweigh all others.
        """
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
        return flow(scheduler.sigmas, eta).to(self.device)

    @property
    def clip_tokens(self) -> int:
        """Text tokens of both CLIPs; T5's come after them."""
        return self.pipe.tokenizer.model_max_length

    @property
    def t5_tokens(self) -> int:
        """T5's text tokens: diffusers' number, or fewer if the model's tokenizer allows no more."""
        tokenizer = self.pipe.tokenizer_3
        return T5_TOKENS if tokenizer is None else min(T5_TOKENS, tokenizer.model_max_length)

    def embed(self, text: str) -> Cond:
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            text,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.t5_tokens,
        )
        return Cond(tokens, {"pooled_projections": pooled})

    def columns(self, prompt: Prompt) -> list[list[list[int]]]:
        clip = clip_columns(self.pipe.tokenizer, prompt)
        if self.pipe.tokenizer_3 is None or self.pipe.text_encoder_3 is None:
            return clip
        tokenizer = self.pipe.tokenizer_3

        def tokens_of(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False, truncation=False).input_ids

        # T5 has no start token, which item_columns counts as column 0.
        t5 = item_columns(prompt, tokens_of, self.t5_tokens + 1)
        return [
            [
                [*ours, *(self.clip_tokens - 1 + column for column in theirs)]
                for ours, theirs in zip(clip_item, t5_item, strict=True)
            ]
            for clip_item, t5_item in zip(clip, t5, strict=True)
        ]

    def map_keys(self, texts: Sequence[str]) -> Tensor:
        """(B, L) bool: the prompts' own tokens, without start, end and padding."""
        length, first = self.encode(texts[:1]).tokens.shape[1], self.clip_tokens
        keys = torch.zeros((len(texts), length), dtype=torch.bool)
        for row, text in enumerate(texts):
            keys[row, 1 : 1 + self._count(self.pipe.tokenizer, text, first - 2)] = True
            if self.pipe.text_encoder_3 is not None:
                count = self._count(self.pipe.tokenizer_3, text, self.t5_tokens - 1)
                keys[row, first : first + count] = True
        return keys.to(self.device)

    @staticmethod
    def _count(tokenizer: Any, text: str, most: int) -> int:
        found = tokenizer(text, add_special_tokens=False, truncation=False).input_ids
        return min(len(found), most)

    def call(
        self,
        network: nn.Module,
        x: Tensor,
        timestep: Tensor,
        cond: Cond,
        control: AttentionControl | None,
    ) -> Any:
        return network(
            x,
            encoder_hidden_states=cond.tokens,
            timestep=timestep.expand(len(x)),
            control=control,
            **cond.extra,
        )
