"""Stable Diffusion 1 and 2: a UNet, one CLIP text encoder, DDIM."""

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel

from dfusion.errors import UserError
from dfusion.method.ddim import PREDICTIONS, ddim
from dfusion.method.denoiser import Cond
from dfusion.method.prompts import Prompt, item_columns
from dfusion.method.sampler import Sampler
from dfusion.models.diffusion_model import HELP, DiffusionModel, Part
from diffusers_patched import AttentionControl, LayerTable, UNet2DConditionModel

SCHEDULE = "the model's scheduler/scheduler_config.json"
CLIP_TOKENIZER = Part(
    "transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), "tokenizer_config.json"
)


class StableDiffusion(DiffusionModel):
    """Stable Diffusion 1.x or 2.x, with noise, v- or x_0-prediction."""

    pipeline = StableDiffusionPipeline
    overlay = UNet2DConditionModel
    encoders: ClassVar = {"text_encoder": CLIPTextModel}
    parts: ClassVar = {
        "unet": Part("diffusers", ("UNet2DConditionModel",)),
        "vae": Part("diffusers", ("AutoencoderKL",)),
        "text_encoder": Part("transformers", ("CLIPTextModel",)),
        "tokenizer": CLIP_TOKENIZER,
        "scheduler": Part("diffusers", (), "scheduler_config.json"),
    }
    without: ClassVar = {
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }
    # Settings of DDIM that a model's file may lack, being made for another sampler.
    schedule: ClassVar[Mapping[str, object]] = {"clip_sample": False}

    @classmethod
    def check_settings(cls, settings: Mapping[str, Mapping[str, Any]], name: str) -> None:
        check_prediction(settings["scheduler"], name)
        unet, text = settings["unet"], settings["text_encoder"]
        if unet.get("addition_embed_type") or unet.get("class_embed_type"):
            raise UserError(f"{name} needs more than a prompt; use an SD1.x or SD2.x model")
        check_unet(settings, name)
        width = unet.get("cross_attention_dim", 1280)
        if width != text.get("hidden_size", 512):
            raise UserError(
                f"{name}: its UNet reads texts of width {width}, its text encoder writes "
                f"{text.get('hidden_size', 512)}; these are parts of two models"
            )

    @property
    def layers(self) -> LayerTable:
        return LayerTable.of(self.network, self.latent_shape[1:])

    def sampler(self, steps: int, eta: float) -> Sampler:
        """DDIM on this model's noise schedule.

        Raises UserError for a schedule with a step that has no probability (std = 0), or that clips
        states, which no Gaussian transition describes.
        """
        config = {**self.schedule, **self.pipe.scheduler.config}
        if config.get("clip_sample") or config.get("thresholding"):
            raise UserError(f"{SCHEDULE}: clip_sample and thresholding must be false for latents")
        prediction = config.get("prediction_type", "epsilon")
        if config.get("rescale_betas_zero_snr") and prediction == "epsilon":
            raise UserError(
                f"{SCHEDULE}: rescale_betas_zero_snr does not go with epsilon prediction"
            )
        scheduler = DDIMScheduler.from_config(config)
        try:
            scheduler.set_timesteps(steps)
            sampler = ddim(
                scheduler.alphas_cumprod,
                scheduler.timesteps,
                float(scheduler.final_alpha_cumprod),
                eta,
                prediction,
            )
        except (ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--config.sample.num_steps {steps}, eta {eta}: {reason} ({SCHEDULE})"
            ) from error
        if not sampler.trainable.all():
            still = [int(t) for t in sampler.timesteps[~sampler.trainable]]
            raise UserError(
                f"{SCHEDULE}: no noise at timestep {still} (sigma = 0), so it has no probability "
                "to train on; use steps_offset 1, set_alpha_to_one false and eta > 0"
            )
        return sampler.to(self.device)

    def embed(self, text: str) -> Cond:
        tokens, _ = self.pipe.encode_prompt(text, self.device, 1, False)
        return Cond(tokens)

    def columns(self, prompt: Prompt) -> list[list[list[int]]]:
        return clip_columns(self.pipe.tokenizer, prompt)

    def call(
        self,
        network: nn.Module,
        x: Tensor,
        timestep: Tensor,
        cond: Cond,
        control: AttentionControl | None,
    ) -> Any:
        added = dict(cond.extra) or None
        return network(x, timestep, cond.tokens, added_cond_kwargs=added, control=control)


def clip_columns(tokenizer: Any, prompt: Prompt) -> list[list[list[int]]]:
    """Columns of the prompt's items among a CLIP tokenizer's tokens."""

    def tokens_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, truncation=False).input_ids

    return item_columns(prompt, tokens_of, tokenizer.model_max_length)


def check_prediction(scheduler: Mapping[str, Any], name: str) -> None:
    """Refuse a scheduler's settings of an unknown prediction. Raises UserError."""
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise UserError(f"{name} predicts {kind}; the sampler knows {', '.join(PREDICTIONS)}")


def check_unet(settings: Mapping[str, Mapping[str, Any]], name: str) -> None:
    """Refuse a UNet that does not fit its VAE, or has no attention. Raises UserError."""
    unet, vae = settings["unet"], settings["vae"]
    channels = unet.get("in_channels", 4)
    if channels != vae.get("latent_channels", 4):
        raise UserError(
            f"{name} takes {channels} channels (an inpainting or depth model?); use a plain "
            "text-to-image model"
        )
    if not any("Attn" in kind for kind in unet.get("up_block_types", ["CrossAttnUpBlock2D"])):
        raise UserError(f"{name}: its UNet has no attention in its up-sampling blocks; {HELP}")
    size, scale = unet.get("sample_size"), vae.get("scaling_factor", 0.18215)
    sides = size if isinstance(size, list | tuple) else [size]
    if len(sides) > 2 or not all(s is None or (type(s) is int and s > 0) for s in sides):
        raise UserError(f"{name}: its UNet's config has sample_size {size!r}; give a number")
    if not isinstance(scale, int | float) or not scale > 0:
        raise UserError(f"{name}: its VAE's config has scaling_factor {scale}; correct it")
