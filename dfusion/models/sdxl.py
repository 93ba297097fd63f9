"""SDXL: a UNet that also reads a pooled embedding and picture sizes, and two CLIP text encoders."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from dfusion.errors import UserError
from dfusion.method.denoiser import Cond
from dfusion.models.diffusion_model import Part
from dfusion.models.stable_diffusion import (
    CLIP_TOKENIZER,
    StableDiffusion,
    check_prediction,
    check_unet,
)


class SDXL(StableDiffusion):
    """SDXL, without its refiner.

    Both text encoders read the same prompt, so that an item has the same token columns in both.
    Sampled by DDIM on the model's own noise schedule, as SPO trains it (Liang et al. 2024).
    """

    pipeline = StableDiffusionXLPipeline
    encoders: ClassVar = {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    parts: ClassVar = {
        **StableDiffusion.parts,
        "text_encoder_2": Part("transformers", ("CLIPTextModelWithProjection",)),
        "tokenizer_2": CLIP_TOKENIZER,
    }
    without: ClassVar = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    # SDXL's file is made for Euler's sampler. With these, DDIM takes the timesteps of SD2.1.
    schedule: ClassVar = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}

    @classmethod
    def check_settings(cls, settings: Mapping[str, Mapping[str, Any]], name: str) -> None:
        check_prediction(settings["scheduler"], name)
        check_unet(settings, name)
        unet = settings["unet"]
        if unet.get("addition_embed_type") != "text_time":
            raise UserError(f"{name}: its UNet reads no pooled text; use an SDXL base model")
        width = unet.get("cross_attention_dim")
        written = sum(settings[encoder].get("hidden_size", 512) for encoder in cls.encoders)
        if width != written:
            raise UserError(
                f"{name}: its UNet reads texts of width {width}, its text encoders write "
                f"{written}; these are parts of two models (the refiner is not supported)"
            )

    def embed(self, text: str) -> Cond:
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            text, device=self.device, do_classifier_free_guidance=False
        )
        height, width = self.size
        sizes = [height, width, 0, 0, height, width]  # original, crop's corner, target
        return self._with(tokens, pooled, torch.tensor([sizes], device=self.device))

    def null(self, negative: str, rows: int) -> Cond:
        """Zeros without a negative prompt, as in diffusers, if the model's index says so."""
        cond = super().null(negative, rows)
        if negative or not self.pipe.config.force_zeros_for_empty_prompt:
            return cond
        pooled, sizes = cond.extra["text_embeds"], cond.extra["time_ids"]
        return self._with(torch.zeros_like(cond.tokens), torch.zeros_like(pooled), sizes)

    @staticmethod
    def _with(tokens: Tensor, pooled: Tensor, sizes: Tensor) -> Cond:
        return Cond(tokens, {"text_embeds": pooled, "time_ids": sizes})
