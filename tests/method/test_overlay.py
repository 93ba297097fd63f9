"""The overlay: identities against stock diffusers, Eq. 5 by hand, recorded maps."""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0
from peft import LoraConfig
from torch import Tensor, nn

from diffusers_patched import (
    PARTS,
    AttentionControl,
    Fusion,
    LayerTable,
    Record,
    UNet2DConditionModel,
)
from diffusers_patched.control import mean_map
from tests.conftest import make_unet

ALL = frozenset(range(5))
SOURCE = torch.tensor([0, 0, 2, 2])  # rows 1 and 3 take from rows 0 and 2


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel.of(make_unet())


def inputs(rows: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(5)
    text = torch.randn(1, 16, 32, generator=rng).expand(rows, -1, -1)
    return torch.randn(rows, 4, 8, 8, generator=rng), torch.tensor(501), text


def mask(value: int | None = None) -> Tensor:
    if value is not None:
        return torch.full((4, 4, 4), bool(value))
    return torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(6)) > 0.5


def run(unet: UNet2DConditionModel, fusion: Fusion, x: Tensor | None = None) -> Tensor:
    state, t, text = inputs()
    with torch.no_grad():
        return unet(
            state if x is None else x, t, text, control=AttentionControl(fusions=(fusion,))
        ).sample


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_control_off_is_stock_to_the_bit(lora: bool, dtype: torch.dtype) -> None:
    stock = make_unet()
    ours = UNet2DConditionModel.of(make_unet())
    assert isinstance(next(iter(stock.attn_processors.values())), AttnProcessor2_0)
    for net in (stock, ours):
        if lora:
            torch.manual_seed(9)
            targets = ["to_q", "to_k", "to_v", "to_out.0"]
            net.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
        net.to(dtype)
    x, t, text = inputs()
    x, text = x.to(dtype), text.to(dtype)
    with torch.no_grad():
        expected = stock(x, t, text).sample
        assert ours(x, t, text).sample.equal(expected)
        assert ours(x, t, text, control=AttentionControl()).sample.equal(expected)


def test_loads_and_saves_like_the_stock_one(tmp_path: Path) -> None:
    stock = make_unet()
    stock.save_pretrained(tmp_path / "stock")
    ours = UNet2DConditionModel.from_pretrained(tmp_path / "stock").eval()
    x, t, text = inputs()
    control = AttentionControl(fusions=(Fusion(SOURCE, ALL, mask()),))
    with torch.no_grad():
        expected = stock(x, t, text).sample
        assert ours(x, t, text).sample.equal(expected)
        assert not ours(x, t, text, control=control).sample.equal(expected)
    ours.save_pretrained(tmp_path / "ours")
    with torch.no_grad():
        again = type(stock).from_pretrained(tmp_path / "ours").eval()
        assert again(x, t, text).sample.equal(expected)


@pytest.mark.parametrize("part", sorted(PARTS.keys() - {"masa_map"}))
def test_empty_mask_changes_nothing_to_the_bit(unet: UNet2DConditionModel, part: str) -> None:
    x, t, text = inputs()
    with torch.no_grad():
        expected = unet(x, t, text).sample
    assert run(unet, Fusion(SOURCE, ALL, mask(0), frozenset({part}))).equal(expected)


@pytest.mark.parametrize("part", sorted(PARTS))
def test_only_fused_rows_change_and_each_part_does_something(
    unet: UNet2DConditionModel, part: str
) -> None:
    x, t, text = inputs()
    with torch.no_grad():
        plain = unet(x, t, text).sample
    changed = (run(unet, Fusion(SOURCE, ALL, mask(), frozenset({part}))) - plain).abs()
    changed = changed.amax((1, 2, 3))
    assert changed[[0, 2]].max() == 0
    assert changed[[1, 3]].min() > 1e-4


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_row_that_equals_its_source_is_not_changed(unet: UNet2DConditionModel, part: str) -> None:
    x = inputs()[0][[0, 0, 2, 2]]
    fused = run(unet, Fusion(SOURCE, ALL, mask(1), frozenset({part})), x)
    assert fused[1].equal(fused[0])
    assert fused[3].equal(fused[2])


def test_fusion_in_no_layer_is_stock(unet: UNet2DConditionModel) -> None:
    x, t, text = inputs()
    with torch.no_grad():
        assert run(unet, Fusion(SOURCE, frozenset(), mask(1))).equal(unet(x, t, text).sample)


def attention_of(unet: UNet2DConditionModel, layer: str) -> nn.Module:
    return unet.get_submodule(f"{layer}.attentions.0.transformer_blocks.0")


def test_eq5_by_hand(unet: UNet2DConditionModel) -> None:
    """One module against the equation written out with explicit matrices."""
    attn = attention_of(unet, "up_blocks.1").attn1
    x = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(7))
    grid = torch.rand(4, 4, generator=torch.Generator().manual_seed(8)) > 0.5
    control = AttentionControl(fusions=(Fusion(torch.tensor([0, 0]), ALL, grid.expand(2, 4, 4)),))
    with torch.no_grad():
        ours = attn(x, control=control.at(4, 64))[1]
        # M-hat: each mask cell covers 2 x 2 of the layer's 8 x 8 cells.
        m = grid.repeat_interleave(2, 0).repeat_interleave(2, 1).flatten().float()[:, None]
        k = attn.to_k(x[0]) * m + attn.to_k(x[1]) * (1 - m)
        v = attn.to_v(x[0]) * m + attn.to_v(x[1]) * (1 - m)
        q = attn.to_q(x[1])
        heads = []
        width = 16 // attn.heads
        for h in range(attn.heads):
            part = slice(h * width, (h + 1) * width)
            probs = (q[:, part] @ k[:, part].T / width**0.5).softmax(-1)
            heads.append(probs @ v[:, part])
        expected = attn.to_out[0](torch.cat(heads, -1))
    assert torch.allclose(ours, expected, atol=1e-6)


def test_self_map_by_hand(unet: UNet2DConditionModel) -> None:
    attn = attention_of(unet, "mid_block").attn1
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(7))
    fusion = Fusion(torch.tensor([0, 0]), ALL, None, frozenset({"self_map"}))
    with torch.no_grad():
        ours = attn(x, control=AttentionControl(fusions=(fusion,)).at(2, 16))[1]
        q, k, v = (
            f(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for f in (attn.to_q, attn.to_k, attn.to_v)
        )
        probs = (q[0] @ k[0].transpose(-1, -2) * attn.scale).softmax(-1)
        expected = attn.to_out[0]((probs @ v[1]).transpose(0, 1).flatten(1))
    assert torch.allclose(ours, expected, atol=1e-6)


def test_masactrl_keeps_regions_apart(unet: UNet2DConditionModel) -> None:
    """With masa_map, what the source has inside its mask cannot reach queries outside of it."""
    attn = attention_of(unet, "mid_block").attn1
    inside = torch.zeros(2, 4, 4, dtype=torch.bool)
    inside[:, :2] = True
    fusion = Fusion(torch.tensor([0, 0]), ALL, inside, frozenset({"masa_map"}))
    control = AttentionControl(fusions=(fusion,)).at(2, 16)
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        before = attn(x, control=control)[1]
        x[0, :8] += 1  # the source, inside its mask
        after = attn(x, control=control)[1]
    changed = (after - before).abs().amax(-1)
    assert changed[:8].min() > 1e-4
    assert changed[8:].max() == 0
    with torch.no_grad():
        x[0, 8:] += 1  # the source, outside of its mask
        changed = (attn(x, control=control)[1] - after).abs().amax(-1)
    assert changed[:8].max() == 0
    assert changed[8:].min() > 1e-4


def test_recorded_maps_are_the_softmax_columns(unet: UNet2DConditionModel) -> None:
    x, t, text = inputs()
    columns = torch.tensor([[3, 1, -1], [2, 2, 5]])
    record = Record(frozenset({3}), columns, first_row=2)
    seen: list[Tensor] = []
    hooks = []
    for module in unet.up_blocks[0].attentions:
        attn = module.transformer_blocks[0].attn2
        hooks.append(
            attn.register_forward_pre_hook(
                lambda attn, args, kwargs: seen.append(
                    attn.get_attention_scores(
                        attn.head_to_batch_dim(attn.to_q(args[0])),
                        attn.head_to_batch_dim(attn.to_k(kwargs["encoder_hidden_states"])),
                    )
                ),
                with_kwargs=True,
            )
        )
    with torch.no_grad():
        maps = unet(x, t, text, control=AttentionControl(record=record)).maps
    for hook in hooks:
        hook.remove()
    assert len(seen) == 2  # two modules in the first up-sampling layer
    probs = torch.stack([p.unflatten(0, (4, 4)).mean(1) for p in seen]).mean(0)  # (N, S, L)
    assert maps.shape == (2, 3, 4, 4)
    for row, line in enumerate(columns.tolist()):
        for j, column in enumerate(line):
            expected = probs[2 + row, :, column] if column >= 0 else torch.zeros(16)
            assert torch.allclose(maps[row, j].flatten(), expected, atol=1e-6)


def test_recording_changes_nothing(unet: UNet2DConditionModel) -> None:
    x, t, text = inputs()
    record = Record(ALL - {0, 4}, torch.tensor([[1]] * 4))
    with torch.no_grad():
        recorded = unet(x, t, text, control=AttentionControl(record=record)).sample
        assert recorded.equal(unet(x, t, text).sample)


def test_layers_of_other_grids_are_refused(unet: UNet2DConditionModel) -> None:
    x, t, text = inputs()
    with pytest.raises(ValueError, match="different grids"):
        unet(x, t, text, control=AttentionControl(record=Record(ALL, torch.tensor([[1]] * 4))))


def test_maps_have_the_grid_that_their_layer_has() -> None:
    """For all latents up to 64 cells a side, and for those of tall pictures: 640 x 360."""
    column = Record(frozenset(), torch.zeros(1, 1, dtype=torch.long))
    for latent in [*itertools.product(range(9, 65, 5), repeat=2), (80, 45), (45, 80), (96, 65)]:
        for level in range(4):
            height, width = (math.ceil(side / 2**level) for side in latent)
            one = torch.arange(height * width).float().reshape(1, -1, 1)
            picture = mean_map([one], column, latent)
            assert picture.equal(one.reshape(1, 1, height, width))


def test_mask_is_resized_by_nearest_neighbour() -> None:
    fusion = Fusion(torch.tensor([1, 1]), ALL, torch.rand(2, 4, 6) > 0.5)
    for height, width in ((8, 12), (4, 6), (2, 3)):
        rows = fusion.rows_at(height * width)[0, :, 0]
        expected = F.interpolate(fusion.mask[:1, None].float(), (height, width)).flatten() > 0.5
        assert rows.equal(expected)
    with pytest.raises(ValueError, match="does not fit"):
        fusion.rows_at(7)
    assert not fusion.rows_at(24)[1].any()  # row 1 is its own source


def test_a_mask_fits_grids_whose_sides_are_rounded() -> None:
    """768 x 432 pixels: a mask of 14 x 24 on layers of 54 x 96, and of 27 x 48."""
    mask = torch.rand(2, 14, 24) > 0.5
    fusion = Fusion(torch.tensor([1, 1]), ALL, mask, grids=frozenset({(54, 96), (27, 48)}))
    for size in ((54, 96), (27, 48)):
        expected = F.interpolate(mask[:1, None].float(), size).flatten() > 0.5
        assert fusion.rows_at(size[0] * size[1])[0, :, 0].equal(expected)


def test_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match="self_x"):
        Fusion(SOURCE, ALL, None, frozenset({"self_x"}))


def test_layer_table_of_sd21() -> None:
    """SD2.1-base: 0-2 down, 3 mid, 4-6 up; the mask comes from layer 4, 16 x 16."""
    with torch.device("meta"):
        sd21 = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=1024,
            attention_head_dim=[5, 10, 20, 20],
            use_linear_projection=True,
        )
    table = LayerTable.of(sd21)
    assert [g[0] for g in table.grids] == [64, 32, 16, 8, 16, 32, 64]
    assert table.parse("first_up") == {4}
    assert table.parse("mid,up") == table.parse("3-6") == {3, 4, 5, 6}
    assert table.parse("first_up_grid") == {2, 4}
    assert table.parse("") == frozenset()
    for bad in ("7", "5-3", "4-9", "middle"):
        with pytest.raises(ValueError, match=bad):
            table.parse(bad)


def test_sdxl_layout_is_numbered() -> None:
    """SDXL: 0-1 down, 2 mid, 3 and 4 up, mask grid 32 x 32 (h / 4 as in SD2.1)."""
    with torch.device("meta"):
        sdxl = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            cross_attention_dim=2048,
            attention_head_dim=[5, 10, 20],
        )
    table = LayerTable.of(sdxl)
    assert table.blocks == (
        "down_blocks.1",
        "down_blocks.2",
        "mid_block",
        "up_blocks.0",
        "up_blocks.1",
    )
    assert table.grids[3] == (32, 32)


def test_record_and_fusion_in_one_call(unet: UNet2DConditionModel) -> None:
    control = AttentionControl(
        record=Record(frozenset({3}), torch.tensor([[1]] * 4)),
        fusions=(Fusion(SOURCE, ALL, mask()),),
    )
    x, t, text = inputs()
    with torch.no_grad():
        out = unet(x, t, text, control=control)
    assert out.maps.shape == (4, 1, 4, 4)
    plain = dataclasses.replace(control, record=None)
    with torch.no_grad():
        assert out.sample.equal(unet(x, t, text, control=plain).sample)
