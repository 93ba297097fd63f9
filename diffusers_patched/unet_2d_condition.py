"""UNet2DConditionModel whose forward takes an attention control and returns item maps."""

import functools
from typing import Any

from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import (
    UNet2DConditionModel as StockUNet2DConditionModel,
)
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from diffusers_patched.attention_processor import AttnProcessor
from diffusers_patched.control import AttentionControl
from diffusers_patched.controlled import controlled, instruct, sharing_weights
from diffusers_patched.layers import LayerTable

KWARGS = "cross_attention_kwargs"


class UNet2DConditionModel(StockUNet2DConditionModel):
    """Stock UNet with our attention processors; loads, saves and takes LoRA like the stock one.

    Any UNet2DConditionModel with transformer blocks works: SD1.x, SD2.x and, through
    added_cond_kwargs, SDXL.
    """

    # diffusers reads the signature; mypy does not follow it
    @functools.wraps(StockUNet2DConditionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_attn_processor({name: AttnProcessor() for name in self.attn_processors})
        table = self.layers
        for name, module in self.named_modules():
            if isinstance(module, Transformer2DModel):
                # Outside of the blocks that are compiled, to which layers are all the same.
                instruct(module, table.layer_of(name), KWARGS, _tokens)

    @classmethod
    def of(cls, unet: StockUNet2DConditionModel) -> "UNet2DConditionModel":
        """The same weights (shared, not copied) under our forward.

        Raises ValueError for a UNet that carries an adapter: attach LoRA afterwards.
        """
        return sharing_weights(cls, unet)

    @property
    def layers(self) -> LayerTable:
        """Layer numbers, names and grids."""
        return LayerTable.of(self)

    def forward(
        self,
        sample: Tensor,  # (N, C, h, w)
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,  # (N, L, E)
        *args: Any,
        control: AttentionControl | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> UNet2DConditionOutput | tuple[Any, ...]:
        """As upstream; with a control, returns ControlOutput."""
        if control is None:
            return super().forward(
                sample,
                timestep,
                encoder_hidden_states,
                *args,
                cross_attention_kwargs=cross_attention_kwargs,
                return_dict=return_dict,
                **kwargs,
            )
        stock = functools.partial(
            super().forward, sample, timestep, encoder_hidden_states, *args, **kwargs
        )
        return controlled(stock, control, KWARGS, cross_attention_kwargs, sample.shape[-2:])


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Image tokens of a Transformer2DModel, from its feature map."""
    return args[0].shape[-2] * args[0].shape[-1]
