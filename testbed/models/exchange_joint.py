"""Exchanged attention (see exchange.py) in joint attention: at image tokens only.

Text tokens keep their keys and values, as in fusion. A map is what image queries give to text
keys, shared out among the prompt's own tokens, as dfusion records it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from testbed.models.exchange import Plan, item_maps

EARLY = (0, 1)  # blocks that do not exchange in a share of batches
POINTING = (2, 3)  # blocks whose maps are trained to lie on the items


@dataclass(eq=False)
class JointProcessor:
    """Stock joint attention, with the image tokens' K and V taken from `plan.source`."""

    plan: Plan
    early: bool
    record: bool

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        **_: object,
    ) -> tuple[Tensor, Tensor]:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        image, text, size = hidden_states, encoder_hidden_states, hidden_states.shape[1]
        query = attn.norm_q(heads(attn.to_q(image)))
        key, value = attn.norm_k(heads(attn.to_k(image))), heads(attn.to_v(image))
        text_query = attn.norm_added_q(heads(attn.add_q_proj(text)))
        text_key = attn.norm_added_k(heads(attn.add_k_proj(text)))
        source = self.plan.source_of(self.early)
        if source is not None:
            key, value = key.index_select(0, source), value.index_select(0, source)
        query, key = torch.cat([query, text_query], 2), torch.cat([key, text_key], 2)
        value = torch.cat([value, heads(attn.add_v_proj(text))], 2)
        # Explicit, as in exchange.py.
        logits = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
        if self.record and self.plan.columns is not None and self.plan.keys is not None:
            others = ~self.plan.keys[:, None, None]
            own = logits[:, :, :size, size:].float().masked_fill(others, -1e4)
            self.plan.maps.append(item_maps(own.softmax(-1).mean(1), self.plan.columns))
        out = logits.softmax(-1, torch.float32).to(value.dtype) @ value
        out = out.transpose(1, 2).flatten(2)
        image, text = attn.to_out[0](out[:, :size]), out[:, size:]
        return image, text if attn.context_pre_only else attn.to_add_out(text)


def install(network: SD3Transformer2DModel) -> Plan:
    """Give the blocks processors that follow a plan, at first one without guests."""
    plan = Plan()
    network.set_attn_processor(
        {
            name: JointProcessor(plan, block in EARLY, block in POINTING)
            for name in network.attn_processors
            for block in [int(name.split(".")[1])]
        }
    )
    return plan
