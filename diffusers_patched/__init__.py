"""A thin overlay on stock diffusers: the UNet and attention processor that D-Fusion needs.

The released code copied all of diffusers 0.24 to change five files. Here the same two places carry
the logic, by subclassing: `UNet2DConditionModel.forward` and `AttnProcessor.__call__`.
"""

from diffusers_patched.attention_processor import AttnProcessor
from diffusers_patched.control import PARTS, AttentionControl, Fusion, Record
from diffusers_patched.layers import LayerTable
from diffusers_patched.unet_2d_condition import UNet2DConditionModel, UNetControlOutput

__all__ = [
    "PARTS",
    "AttentionControl",
    "AttnProcessor",
    "Fusion",
    "LayerTable",
    "Record",
    "UNet2DConditionModel",
    "UNetControlOutput",
]
