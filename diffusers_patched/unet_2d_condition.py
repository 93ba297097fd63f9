"""UNet2DConditionModel whose forward takes an attention control and returns item maps."""

import functools
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import (
    UNet2DConditionModel as StockUNet2DConditionModel,
)
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from diffusers_patched.attention_processor import AttnProcessor
from diffusers_patched.control import AttentionControl, ControlOutput, LayerControl, mean_map
from diffusers_patched.layers import LayerTable


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
                hook = functools.partial(_instruct, table.layer_of(name))
                module.register_forward_pre_hook(hook, with_kwargs=True)

    @classmethod
    def of(cls, unet: StockUNet2DConditionModel) -> "UNet2DConditionModel":
        """The same weights (shared, not copied) under our forward.

        Raises ValueError for a UNet that carries an adapter: attach LoRA afterwards.
        """
        if getattr(unet, "peft_config", None):
            raise ValueError("attach LoRA after UNet2DConditionModel.of, not before")
        with torch.device("meta"):
            patched = cls.from_config(unet.config)
        patched.load_state_dict(unet.state_dict(), assign=True)
        return patched.train(unet.training)

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
        used: list[LayerControl] = []
        out = super().forward(
            sample,
            timestep,
            encoder_hidden_states,
            *args,
            cross_attention_kwargs={
                **(cross_attention_kwargs or {}),
                "control": control,
                "used": used,
            },
            return_dict=True,
            **kwargs,
        )
        maps = [map_ for layer in used for map_ in layer.maps]
        shape = sample.shape[-2:]
        mean = mean_map(maps, control.record, shape) if control.record else None
        return ControlOutput(sample=out.sample, maps=mean)


def _instruct(
    layer: int, module: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a layer's module runs: what the call's control has it do, which `used` collects.

    Outside of the blocks that are compiled, to which layers and steps are all the same.
    """
    passed = kwargs.get("cross_attention_kwargs") or {}
    if "control" not in passed:
        return None
    others = {key: value for key, value in passed.items() if key not in ("control", "used")}
    control = passed["control"].at(layer, args[0].shape[-2] * args[0].shape[-1])
    if control:
        passed["used"].append(control)
        others["control"] = control
    return args, {**kwargs, "cross_attention_kwargs": others or None}
