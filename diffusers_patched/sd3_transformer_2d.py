"""SD3Transformer2DModel whose forward takes an attention control and returns item maps."""

import functools
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_sd3 import (
    SD3Transformer2DModel as StockSD3Transformer2DModel,
)
from torch import Tensor

from diffusers_patched.control import AttentionControl, ControlOutput, LayerControl, mean_map
from diffusers_patched.joint_attention import JointAttnProcessor
from diffusers_patched.layers import LayerTable


class SD3Transformer2DModel(StockSD3Transformer2DModel):  # type: ignore[misc]
    """Stock transformer of SD3 and SD3.5 with our attention processors.

    It loads, saves and takes LoRA like the stock one.
    """

    # diffusers reads the signature; mypy does not follow it
    @functools.wraps(StockSD3Transformer2DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_attn_processor({name: JointAttnProcessor() for name in self.attn_processors})
        for layer, block in enumerate(self.transformer_blocks):
            hook = functools.partial(_instruct, layer)
            block.register_forward_pre_hook(hook, with_kwargs=True)

    @classmethod
    def of(cls, network: StockSD3Transformer2DModel) -> "SD3Transformer2DModel":
        """The same weights (shared, not copied) under our forward.

        Raises ValueError for a network that carries an adapter: attach LoRA afterwards.
        """
        if getattr(network, "peft_config", None):
            raise ValueError("attach LoRA after SD3Transformer2DModel.of, not before")
        with torch.device("meta"):
            patched = cls.from_config(network.config)
        patched.load_state_dict(network.state_dict(), assign=True)
        return patched.train(network.training)

    def layer_table(self, latent: tuple[int, int]) -> LayerTable:
        """Every block is a layer, and all have the grid of the image tokens.

        latent: (height, width) of latents.
        """
        side = self.config.patch_size
        count = len(self.transformer_blocks)
        thirds = [range(count)[n * count // 3 : (n + 1) * count // 3] for n in range(3)]
        dual = [n for n, block in enumerate(self.transformer_blocks) if block.use_dual_attention]
        return LayerTable(
            blocks=tuple(f"transformer_blocks.{n}" for n in range(count)),
            grids=((latent[0] // side, latent[1] // side),) * count,
            names={
                "all": frozenset(range(count)),
                "dual": frozenset(dual),
                "early": frozenset(thirds[0]),
                "middle": frozenset(thirds[1]),
                "late": frozenset(thirds[2]),
            },
        )

    def forward(
        self,
        hidden_states: Tensor,  # (N, C, h, w)
        *args: Any,
        control: AttentionControl | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Transformer2DModelOutput | tuple[Any, ...]:
        """As upstream; with a control, returns ControlOutput."""
        if control is None:
            return super().forward(
                hidden_states,
                *args,
                joint_attention_kwargs=joint_attention_kwargs,
                return_dict=return_dict,
                **kwargs,
            )
        used: list[LayerControl] = []
        passed = {**(joint_attention_kwargs or {}), "control": control, "used": used}
        out = super().forward(hidden_states, *args, joint_attention_kwargs=passed, **kwargs)
        maps = [map_ for layer in used for map_ in layer.maps]
        shape = hidden_states.shape[-2:]
        mean = mean_map(maps, control.record, shape) if control.record else None
        return ControlOutput(sample=out.sample, maps=mean)


def _instruct(
    layer: int, module: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before a block runs: what the call's control has it do, which `used` collects.

    Outside of the blocks that are compiled, to which layers and steps are all the same.
    """
    passed = kwargs.get("joint_attention_kwargs") or {}
    if "control" not in passed:
        return None
    others = {key: value for key, value in passed.items() if key not in ("control", "used")}
    control = passed["control"].at(layer, kwargs["hidden_states"].shape[1])
    if control:
        passed["used"].append(control)
        others["control"] = control
    return args, {**kwargs, "joint_attention_kwargs": others}
