"""A thin overlay on stock diffusers: the UNet and attention processor that D-Fusion needs.

The released code copied all of diffusers 0.24 to change five files. Here the same two places carry
the logic, by subclassing: `UNet2DConditionModel.forward` and `AttnProcessor.__call__`.
"""

from diffusers_patched.attention_processor import AttnProcessor
from diffusers_patched.control import PARTS, AttentionControl, ControlOutput, Fusion, Record
from diffusers_patched.joint_attention import JointAttnProcessor
from diffusers_patched.layers import LayerTable
from diffusers_patched.sd3_transformer_2d import SD3Transformer2DModel
from diffusers_patched.unet_2d_condition import UNet2DConditionModel

__all__ = [
    "PARTS",
    "AttentionControl",
    "AttnProcessor",
    "ControlOutput",
    "Fusion",
    "JointAttnProcessor",
    "LayerTable",
    "Record",
    "SD3Transformer2DModel",
    "UNet2DConditionModel",
]
