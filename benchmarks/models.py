"""The models to measure: the testbed's, and random weights in other sizes.

tiny  for trying things out
sd21  UNet and VAE as Stable Diffusion 2.1-base publishes their configs; the text encoder has its
      shapes but one layer, as each prompt is encoded only once
"""

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dfusion.models.diffusion_model import DiffusionModel
from dfusion.models.loading import load_model
from dfusion.models.stable_diffusion import StableDiffusion
from dfusion.settings.schema import Eval, Pretrained
from testbed.models.unet import SCHEDULE

TESTBED = "testbed/weights/diffusion"
UNETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
        "norm_num_groups": 4,
    },
    "sd21": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "norm_num_groups": 32,
    },
}
VAES: dict[str, dict[str, Any]] = {
    "tiny": {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4},
    "sd21": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
}
TOKENS = {"tiny": 16, "sd21": 77}
NAMES = ("testbed", *UNETS)


def make(name: str, device: torch.device, dtype: torch.dtype) -> DiffusionModel:
    """A model of NAMES; random weights are the same every time."""
    if name == "testbed":
        return load_model(Pretrained(model=TESTBED), device, dtype)
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(f"{TESTBED}/tokenizer", model_max_length=TOKENS[name])
    unet = UNet2DConditionModel(**UNETS[name]).eval()
    pipe = StableDiffusionPipeline(
        vae=_vae(name),
        text_encoder=_text_encoder(tokenizer, unet.config.cross_attention_dim),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return StableDiffusion(pipe, device, dtype)


def scorer(name: str) -> Eval:
    """The paper's scorer, with random weights, for sd21; else the testbed's."""
    if name == "sd21":
        return Eval(model="ViT-H-14", pretrained="")
    return Eval(model="local-dir:testbed/weights/scorer", pretrained="")


def _vae(name: str) -> AutoencoderKL:
    levels = len(VAES[name]["block_out_channels"])
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        **VAES[name],
    ).eval()


def _text_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=1,
        num_attention_heads=width // 32,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()
