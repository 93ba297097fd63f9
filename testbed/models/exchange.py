"""Exchanged attention: a regulariser that makes self-attention carry geometry and content.

Left alone, a small network takes outlines from each token's own noisy latent and only style from
attention. So in some rows of a batch ("guests") keys and values of self-attention come from
another row (the "host", at the same time and with the same prompt), the latent shows the row's own
scene mixed with the host's, and the noise to be predicted is the one that leads to the host's
scene. What a host shows must then be read from its keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

LATE = 0.4  # share of batches in which early blocks (of the UNet: down) do not exchange
FULL, NONE = 500, 50  # the other scene's weight is up to 1 above time FULL, 0 below NONE


@dataclass
class Plan:
    """Rows to take keys and values from, and whether early blocks do so too.

    columns: (B, I, J) text tokens of the items. keys: (B, L) bool, the prompts' own tokens, among
    which joint attention's maps share attention out. maps: filled by each recording layer with the
    items' probabilities (B, tokens, I), mean over heads and J.
    """

    source: Tensor | None = None
    early: bool = True
    columns: Tensor | None = None
    keys: Tensor | None = None
    maps: list[Tensor] = field(default_factory=list)

    def source_of(self, early: bool) -> Tensor | None:
        """`source` for a block, early or not; None if the block does not exchange."""
        return self.source if self.early or not early else None


@dataclass(eq=False)
class Processor:
    """Stock self- and cross-attention, with self-attention K and V taken from `plan.source`."""

    plan: Plan
    early: bool
    record: bool

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        context = encoder_hidden_states if encoder_hidden_states is not None else hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        source = self.plan.source_of(self.early)
        if encoder_hidden_states is None and source is not None:
            key, value = key[source], value[source]
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value)
        )
        # Explicit: on CPUs the fused kernel's backward pass takes three times as long in bfloat16.
        attention = (query @ key.transpose(-1, -2) * attn.scale).softmax(-1, torch.float32)
        if self.record and self.plan.columns is not None:
            self.plan.maps.append(item_maps(attention.mean(1), self.plan.columns))
        out = (attention.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


def item_maps(attention: Tensor, columns: Tensor) -> Tensor:
    """(B, tokens, I) of attention (B, tokens, L) at columns (B, I, J), mean over J."""
    index = columns.flatten(1)[:, None].expand(-1, attention.shape[1], -1)
    return attention.gather(2, index).unflatten(2, columns.shape[1:]).mean(3)


def hosts(rows: int, guests: int) -> Tensor:
    """(rows,) which row each row takes keys and values from: the last `guests`, the first ones."""
    source = torch.arange(rows)
    source[rows - guests :] = torch.arange(guests)
    return source


def install(unet: UNet2DConditionModel) -> Plan:
    """Give the network processors that follow a plan, at first one without guests."""
    plan = Plan()
    unet.set_attn_processor(
        {
            name: Processor(
                plan, name.startswith("down"), name.startswith("up_blocks.0") and "attn2" in name
            )
            for name in unet.attn_processors
        }
    )
    return plan


def invite(
    x0: Tensor, t: Tensor, prompt: Tensor, guests: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the rows show, x0 to aim at, times and prompts, all with the guests' rows replaced.

    x0 (B, 4, 16, 16), t (B,), prompt (B,).
    """
    first = len(x0) - guests
    t, prompt, aim = t.clone(), prompt.clone(), x0.clone()
    t[first:], prompt[first:], aim[first:] = t[:guests], prompt[:guests], x0[:guests]
    ceiling = ((t[first:] - NONE) / (FULL - NONE)).clamp(0, 1)
    weight = (ceiling * torch.rand(guests)).view(-1, 1, 1, 1)
    shown = x0.clone()
    shown[first:] = (1 - weight) * x0[:guests] + weight * x0[first:]
    return shown, aim, t, prompt
