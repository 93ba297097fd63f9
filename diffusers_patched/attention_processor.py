"""AttnProcessor: scaled-dot-product attention that can record item maps and fuse components.

With no control it computes exactly what diffusers' AttnProcessor2_0 does. Shapes: N rows of the
batch, S query tokens, L key tokens, C channels, H heads, D = C / H.
"""

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from diffusers_patched.control import LayerControl, LayerFusion


class AttnProcessor:
    """Attention processor of a UNet's transformer blocks; torch.compile takes it whole."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # (N, S, C)
        encoder_hidden_states: Tensor | None = None,  # (N, L, E), None in self-attention
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        control: LayerControl | None = None,
    ) -> Tensor:
        if hidden_states.ndim != 3 or attn.spatial_norm is not None or attn.group_norm is not None:
            raise ValueError("AttnProcessor serves transformer blocks of UNets only")
        is_cross = encoder_hidden_states is not None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if is_cross and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, k.shape[1], len(q))
            attention_mask = attention_mask.view(len(q), attn.heads, -1, attention_mask.shape[-1])

        if is_cross and control and control.recorded:
            control.maps.append(_probabilities(attn, q, k, slice(*control.recorded)))
        fusions = control.fusions if control else ()
        fused = _fused_cross_attention if is_cross else _fused_self_attention
        if fusions:
            out = fused(attn, q, k, v, fusions, attention_mask)
        else:
            out = _attention(attn, q, k, v, attention_mask)

        out = attn.to_out[1](attn.to_out[0](out))
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


def _heads(attn: Attention, x: Tensor) -> Tensor:
    """(N, S, C) -> (N, H, S, D)."""
    return x.view(len(x), -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)


def _attention(attn: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V (Eq. 2), (N, S, C)."""
    q, k, v = (_heads(attn, x) for x in (q, k, v))
    if attn.norm_q is not None:
        q = attn.norm_q(q)
    if attn.norm_k is not None:
        k = attn.norm_k(k)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2).to(q.dtype)


def _probabilities(attn: Attention, q: Tensor, k: Tensor, rows: slice) -> Tensor:
    """Attention probabilities of some rows, mean over heads: (R, S, L) float32."""
    q, k = _heads(attn, q[rows]), _heads(attn, k[rows])
    return (q.float() @ k.float().transpose(-1, -2) * attn.scale).softmax(-1).mean(1)


def _take(x: Tensor, fusion: LayerFusion) -> Tensor:
    """Eq. 5 for any component: the source row's tokens inside the mask, the row's own outside."""
    return torch.where(fusion.rows, x[fusion.source], x)


def _fused_self_attention(
    attn: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fusions: tuple[LayerFusion, ...],
    attention_mask: Tensor | None,
) -> Tensor:
    for fusion in fusions:
        q = _take(q, fusion) if "self_q" in fusion.parts else q
        k = _take(k, fusion) if "self_k" in fusion.parts else k
        v = _take(v, fusion) if "self_v" in fusion.parts else v
    out = _attention(attn, q, k, v, attention_mask)
    for fusion in fusions:
        if "self_map" in fusion.parts:
            theirs = _attention(attn, q[fusion.source], k[fusion.source], v, attention_mask)
            out = torch.where(fusion.rows, theirs, out)
        if fusion.parts & {"masa_map", "masa_out"}:
            out = _masactrl(attn, q, k, v, out, fusion)
        out = _take(out, fusion) if "self_out" in fusion.parts else out
    return out


def _fused_cross_attention(
    attn: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fusions: tuple[LayerFusion, ...],
    attention_mask: Tensor | None,
) -> Tensor:
    for fusion in fusions:
        # Rows of a pair share their prompt, hence K: taking Q takes the map.
        q = _take(q, fusion) if "cross_map" in fusion.parts else q
    out = _attention(attn, q, k, v, attention_mask)
    for fusion in fusions:
        out = _take(out, fusion) if "cross_out" in fusion.parts else out
    return out


def _masactrl(
    attn: Attention, q: Tensor, k: Tensor, v: Tensor, own: Tensor, fusion: LayerFusion
) -> Tensor:
    """Mask-guided mutual self-attention (MasaCtrl, Cao et al. 2023) and its two halves.

    All queries of a fused row read K and V of the source row. masa_map: inside the mask they see
    the source's masked tokens only, outside the others only. masa_out: outside the mask the row
    keeps its own attention output.
    """
    inside = fusion.rows  # (N, S, 1)
    own_row = torch.arange(len(q), device=q.device)
    everywhere = (fusion.source != own_row)[:, None, None]
    visible = None
    if "masa_map" in fusion.parts:
        visible = inside == inside.transpose(1, 2)  # (N, S, S)
        # A query whose region is empty would have nothing to read: let it read everything.
        visible = (visible | ~visible.any(-1, keepdim=True))[:, None]
    mutual = _attention(attn, q, k[fusion.source], v[fusion.source], visible)
    rows = inside if "masa_out" in fusion.parts else everywhere
    return torch.where(rows, mutual, own)
