"""Joint attention of SD3's transformer blocks that can record item maps and fuse image tokens.

Image and text tokens attend to each other in one softmax. Fusion (Eq. 5) takes the source row's
components at image tokens only; text tokens keep their own. A map is what image queries give to
text keys. With no control this computes exactly what diffusers' JointAttnProcessor2_0 does.
Shapes: N rows of the batch, S image and L text tokens, C channels, H heads, D = C / H.
"""

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from diffusers_patched.control import JOINT_PARTS, LayerControl, LayerFusion

QKV = tuple[Tensor, Tensor, Tensor]  # (N, H, tokens, D) each


class JointAttnProcessor:
    """Attention processor of SD3's blocks, for joint and for image-only attention (attn2)."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # (N, S, C)
        encoder_hidden_states: Tensor | None = None,  # (N, L, C), None in image-only attention
        attention_mask: Tensor | None = None,
        control: LayerControl | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        image = _projected(attn, hidden_states)
        fused = _fused(image, control.fusions) if control else image
        if encoder_hidden_states is None:
            out = _merged(F.scaled_dot_product_attention(*fused), image[0].dtype)
            return _image_out(attn, _outputs(out, control))

        text = _projected_text(attn, encoder_hidden_states)
        if control and control.recorded:
            rows = slice(*control.recorded)
            control.maps.append(_item_maps(image[0][rows], image[1][rows], text[1][rows], control))
        both = _joined(fused, text)
        out = _merged(F.scaled_dot_product_attention(*both), image[0].dtype)
        size = hidden_states.shape[1]
        image_out, text_out = out[:, :size], out[:, size:]
        if control and any(fusion.own_text for fusion in control.fusions):
            _, k, v = _joined(image, text)
            text_out = _merged(F.scaled_dot_product_attention(text[0], k, v), image[0].dtype)
        if not attn.context_pre_only:
            text_out = attn.to_add_out(text_out)
        return _image_out(attn, _outputs(image_out, control)), text_out


def _projected(attn: Attention, x: Tensor) -> QKV:
    """Queries, keys and values of image tokens."""
    q, k, v = (_heads(attn, project(x)) for project in (attn.to_q, attn.to_k, attn.to_v))
    return (
        q if attn.norm_q is None else attn.norm_q(q),
        k if attn.norm_k is None else attn.norm_k(k),
        v,
    )


def _projected_text(attn: Attention, x: Tensor) -> QKV:
    """Queries, keys and values of text tokens."""
    projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    q, k, v = (_heads(attn, project(x)) for project in projections)
    return (
        q if attn.norm_added_q is None else attn.norm_added_q(q),
        k if attn.norm_added_k is None else attn.norm_added_k(k),
        v,
    )


def _heads(attn: Attention, x: Tensor) -> Tensor:
    """(N, tokens, C) -> (N, H, tokens, D)."""
    return x.view(len(x), -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)


def _merged(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, H, tokens, D) -> (N, tokens, C)."""
    return x.transpose(1, 2).flatten(2).to(dtype)


def _joined(image: QKV, text: QKV) -> QKV:
    q, k, v = (torch.cat(parts, dim=2) for parts in zip(image, text, strict=True))
    return q, k, v


def _fused(image: QKV, fusions: tuple[LayerFusion, ...]) -> QKV:
    """Eq. 5 at image tokens."""
    q, k, v = image
    for fusion in fusions:
        if not fusion.parts <= JOINT_PARTS:
            raise ValueError(f"joint attention has no {sorted(fusion.parts - JOINT_PARTS)}")
        rows = fusion.rows[:, None]  # (N, 1, S, 1)
        q = torch.where(rows, q[fusion.source], q) if "self_q" in fusion.parts else q
        k = torch.where(rows, k[fusion.source], k) if "self_k" in fusion.parts else k
        v = torch.where(rows, v[fusion.source], v) if "self_v" in fusion.parts else v
    return q, k, v


def _outputs(out: Tensor, control: LayerControl | None) -> Tensor:
    """(N, S, C), with the source row's where a fusion takes outputs."""
    for fusion in control.fusions if control else ():
        if "self_out" in fusion.parts:
            out = torch.where(fusion.rows, out[fusion.source], out)
    return out


def _image_out(attn: Attention, x: Tensor) -> Tensor:
    return attn.to_out[1](attn.to_out[0](x))


def _item_maps(q: Tensor, k_image: Tensor, k_text: Tensor, control: LayerControl) -> Tensor:
    """What image queries give to text keys, mean over heads: (R, S, L) float32.

    Attention is shared out among `control.keys`, (R, L) bool, or among all keys, as in the model.
    One head at a time: at 1024 px, a table of all heads would not fit in memory.
    """
    total = q.new_zeros((len(q), q.shape[2], k_text.shape[2]), dtype=torch.float32)
    scale = q.shape[-1] ** -0.5
    for head in range(q.shape[1]):
        queries = q[:, head].float() * scale
        logits = queries @ k_text[:, head].float().transpose(-1, -2)
        if control.keys is None:
            others = queries @ k_image[:, head].float().transpose(-1, -2)
            total += torch.cat([others, logits], -1).softmax(-1)[..., others.shape[-1] :]
        else:
            total += logits.masked_fill(~control.keys[:, None], -torch.inf).softmax(-1)
    return total / q.shape[1]
