"""UNet2DConditionModel whose forward takes an attention control and returns item maps."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import (
    UNet2DConditionModel as StockUNet2DConditionModel,
)
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from diffusers_patched.attention_processor import AttnProcessor
from diffusers_patched.control import AttentionControl, LayerControl, Record
from diffusers_patched.layers import LayerTable


@dataclass
class UNetControlOutput(UNet2DConditionOutput):
    """sample: (N, C, h, w). maps: (R, J, gh, gw) float32, or None where nothing was recorded."""

    maps: Tensor | None = None


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
        """As upstream; with a control, returns UNetControlOutput."""
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
        mean_map = _mean_map(maps, control.record, sample) if control.record else None
        return UNetControlOutput(sample=out.sample, maps=mean_map)


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


def _mean_map(maps: list[Tensor], record: Record, sample: Tensor) -> Tensor:
    """The recorded columns, mean over modules, as a picture: (R, J, gh, gw).

    maps: one (R, S, L) tensor per recorded module, in the order of computation.
    """
    if not maps:
        raise ValueError("no cross-attention in the recorded layers")
    if len({m.shape for m in maps}) > 1:
        raise ValueError("the recorded layers have different grids; record layers of one grid")
    columns = record.columns[:, None].expand(-1, maps[0].shape[1], -1)  # (R, S, J)
    kept = [m.gather(-1, columns.clamp(min=0)) * (columns >= 0) for m in maps]
    mean = torch.stack(kept).mean(0)
    height = round((mean.shape[1] * sample.shape[-2] / sample.shape[-1]) ** 0.5)
    return mean.unflatten(1, (height, -1)).permute(0, 3, 1, 2)
