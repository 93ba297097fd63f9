"""A thin overlay on stock diffusers: the networks and attention processors that D-Fusion needs.

The released code copied all of diffusers 0.24 to change five files. Here two places carry the
logic, by subclassing: a network's `forward` (the UNet's and SD3's transformer's) and the attention
processor's `__call__`.
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
