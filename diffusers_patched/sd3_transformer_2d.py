"""SD3Transformer2DModel whose forward takes an attention control and returns item maps."""

import functools
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_sd3 import (
    SD3Transformer2DModel as StockSD3Transformer2DModel,
)
from torch import Tensor

from diffusers_patched.control import AttentionControl
from diffusers_patched.controlled import controlled, instruct, sharing_weights
from diffusers_patched.joint_attention import JointAttnProcessor
from diffusers_patched.layers import LayerTable

KWARGS = "joint_attention_kwargs"


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
            instruct(block, layer, KWARGS, _tokens)

    @classmethod
    def of(cls, network: StockSD3Transformer2DModel) -> "SD3Transformer2DModel":
        """The same weights (shared, not copied) under our forward.

        Raises ValueError for a network that carries an adapter: attach LoRA afterwards.
        """
        return sharing_weights(cls, network)

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

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks, which share graphs.

        The hooks stay outside: a graph that contained the layer's number would serve no other.
        """
        for block in self.transformer_blocks:
            block.forward = torch.compile(block.forward, *args, **kwargs)

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
        stock = functools.partial(super().forward, hidden_states, *args, **kwargs)
        return controlled(stock, control, KWARGS, joint_attention_kwargs, hidden_states.shape[-2:])


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Image tokens of a block."""
    return kwargs["hidden_states"].shape[1]
