"""The denoiser: a stock UNet2DConditionModel whose convolutions see little.

Self-attention must carry what prompts are about (as in Stable Diffusion, where convolutions see
a small part of the picture). So most 3x3 kernels keep only their centre tap: while training they
are 1x1 convolutions, in the saved model ordinary 3x3 kernels with zeros around the centre.
What stays 3x3: the first and last convolution, the down- and the up-sampling one, the first
convolution of each 16x16 block, and POSITION_CHANNELS outputs of the 8x8 down block, through which
the zero padding tells every token where it is.

Attention layers: 0 down 16x16, 1 down 8x8, 2 mid 8x8, 3 up 8x8, 4 up 16x16.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

CONFIG = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [48, 112],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1],
    "attention_head_dim": [2, 4],
    "cross_attention_dim": 128,
    "norm_num_groups": 16,
    "use_linear_projection": True,
}
POSITION_CHANNELS = 16
SCHEDULE = {  # DDIMScheduler's settings in Stable Diffusion 2.1-base
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


def centre_only(unet: UNet2DConditionModel) -> list[str]:
    """Names of the convolutions that keep only their centre tap."""
    names = []
    for name, module in unet.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if module.kernel_size != (1, 1) and (
            name.startswith(("mid_block", "up_blocks.0.resnets"))
            or (name.startswith(("down_blocks.0", "up_blocks.1")) and name.endswith("conv2"))
        ):
            names.append(name)
    return names


def narrow(unet: UNet2DConditionModel) -> list[nn.Conv2d]:
    """The convolutions whose outer taps feed POSITION_CHANNELS outputs only."""
    resnet = unet.down_blocks[1].resnets[0]
    return [resnet.conv1, resnet.conv2]


def build() -> tuple[UNet2DConditionModel, list[str]]:
    """A fresh network in its training form, and the names of its thinned convolutions."""
    unet = UNet2DConditionModel(**CONFIG)
    names = centre_only(unet)
    for name in names:
        parent, _, child = name.rpartition(".")
        old = unet.get_submodule(name)
        new = nn.Conv2d(old.in_channels, old.out_channels, 1)
        setattr(unet.get_submodule(parent), child, new)
    constrain(unet)
    return unet, names


@torch.no_grad()
def constrain(unet: UNet2DConditionModel) -> None:
    """Zero the outer taps that `narrow` forbids; to be called after each optimiser step."""
    for conv in narrow(unet):
        centre = conv.weight[POSITION_CHANNELS:, :, 1, 1].clone()
        conv.weight[POSITION_CHANNELS:] = 0
        conv.weight[POSITION_CHANNELS:, :, 1, 1] = centre


def stock_state(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Weights of the training form as weights of a stock UNet2DConditionModel(**CONFIG)."""
    kernels = {f"{name}.weight" for name in names}
    return {k: F.pad(v, (1, 1, 1, 1)) if k in kernels else v for k, v in state.items()}


def training_state(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The inverse of `stock_state`."""
    kernels = {f"{name}.weight" for name in names}
    return {k: v[..., 1:2, 1:2] if k in kernels else v for k, v in state.items()}
