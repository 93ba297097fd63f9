"""Joint attention written out by hand: fused keys, what text reads, and item maps."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor

from diffusers_patched import AttentionControl, Fusion, JointAttnProcessor, Record
from diffusers_patched.control import LayerControl

N, S, L, C, HEADS = 4, 4, 5, 16, 2


@pytest.fixture
def attn() -> Attention:
    torch.manual_seed(0)
    return Attention(
        query_dim=C,
        added_kv_proj_dim=C,
        dim_head=C // HEADS,
        heads=HEADS,
        out_dim=C,
        context_pre_only=False,
        bias=True,
        qk_norm="rms_norm",
        processor=JointAttnProcessor(),
    ).eval()


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(N, S, C, generator=rng), torch.randn(N, L, C, generator=rng)


def fusion(own_text: bool) -> LayerControl:
    """Rows 1 and 3 take cells 0 and 2 of rows 0 and 2."""
    mask = torch.tensor([[[1, 0], [1, 0]]], dtype=torch.bool).expand(N, -1, -1)
    source = torch.tensor([0, 0, 2, 2])
    taken = Fusion(source, frozenset({0}), mask, own_text=own_text)
    control = AttentionControl(fusions=(taken,)).at(0, S)
    assert control is not None
    return control


@torch.no_grad()
def stock(attn: Attention, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    attn.set_processor(JointAttnProcessor2_0())
    out = attn(hidden_states=image, encoder_hidden_states=text)
    attn.set_processor(JointAttnProcessor())
    return out


@torch.no_grad()
@pytest.mark.parametrize("own_text", [False, True])
def test_fused_keys_and_values(
    attn: Attention, tokens: tuple[Tensor, Tensor], own_text: bool
) -> None:
    """Head by head and query by query, for row 1."""
    image, text = tokens
    plain_image, plain_text = stock(attn, image, text)
    control = fusion(own_text)
    ours, ours_text = attn(hidden_states=image, encoder_hidden_states=text, control=control)
    assert ours[::2].equal(plain_image[::2])
    # Text queries that read their own keys are a call of their own, which rounds differently.
    tolerance = 1e-6 if own_text else 0
    torch.testing.assert_close(ours_text[::2], plain_text[::2], rtol=0, atol=tolerance)

    def split(x: Tensor) -> Tensor:
        return x.view(-1, HEADS, C // HEADS)

    def keys(row: int) -> Tensor:
        return attn.norm_k(split(attn.to_k(image[row])))

    k, v = keys(1).clone(), split(attn.to_v(image[1])).clone()
    for cell in (0, 2):
        k[cell], v[cell] = keys(0)[cell], split(attn.to_v(image[0]))[cell]
    k = torch.cat([k, attn.norm_added_k(split(attn.add_k_proj(text[1])))])
    v = torch.cat([v, split(attn.add_v_proj(text[1]))])

    def attended(q: Tensor) -> Tensor:
        weights = torch.einsum("qhd,khd->hqk", q, k) / (C // HEADS) ** 0.5
        return torch.einsum("hqk,khd->qhd", weights.softmax(-1), v).flatten(1)

    expected = attn.to_out[0](attended(attn.norm_q(split(attn.to_q(image[1])))))
    assert torch.allclose(ours[1], expected, atol=1e-5)
    fused_text = attn.to_add_out(attended(attn.norm_added_q(split(attn.add_q_proj(text[1])))))
    assert torch.allclose(ours_text[1], plain_text[1] if own_text else fused_text, atol=1e-5)
    assert not torch.allclose(plain_text[1], fused_text, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
def test_maps_are_what_image_queries_give_to_text(
    attn: Attention, tokens: tuple[Tensor, Tensor], shared: bool
) -> None:
    image, text = tokens
    keys = torch.tensor([[0, 1, 1, 0, 1], [0, 1, 0, 0, 0]], dtype=torch.bool) if shared else None
    record = Record(frozenset({0}), torch.ones(2, 1, dtype=torch.long), first_row=2, keys=keys)
    control = AttentionControl(record=record).at(0, S)
    assert control is not None
    attn(hidden_states=image, encoder_hidden_states=text, control=control)
    (maps,) = control.maps
    assert maps.shape == (2, S, L)
    for row in (0, 1):
        wanted = torch.zeros(S, L)
        for head in range(HEADS):
            part = slice(head * C // HEADS, (head + 1) * C // HEADS)
            q = attn.norm_q(attn.to_q(image[2 + row])[:, part])
            image_keys = attn.norm_k(attn.to_k(image[2 + row])[:, part])
            text_keys = attn.norm_added_k(attn.add_k_proj(text[2 + row])[:, part])
            weights = (q @ torch.cat([image_keys, text_keys]).T / (C // HEADS) ** 0.5).exp()
            to_text = weights[:, S:]
            if keys is None:
                wanted += to_text / weights.sum(1, keepdim=True) / HEADS
            else:
                counted = to_text * keys[row]
                wanted += counted / counted.sum(1, keepdim=True) / HEADS
        assert torch.allclose(maps[row], wanted, atol=1e-5)


def test_parts_of_cross_attention_are_refused(
    attn: Attention, tokens: tuple[Tensor, Tensor]
) -> None:
    source = torch.tensor([0, 0, 2, 2])
    control = AttentionControl(
        fusions=(Fusion(source, frozenset({0}), parts=frozenset({"cross_map"})),)
    ).at(0, S)
    with pytest.raises(ValueError, match="joint attention has no .*cross_map"):
        attn(hidden_states=tokens[0], encoder_hidden_states=tokens[1], control=control)
