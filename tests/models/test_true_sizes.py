"""SDXL's and SD3.5-Medium's networks at their true size, on the meta device, without weights."""

import torch

from dfusion.models import lora
from dfusion.settings.presets import PRESETS
from diffusers_patched import LayerTable, SD3Transformer2DModel, UNet2DConditionModel

SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD35_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}


def test_sdxl() -> None:
    """2.57 B parameters; 70 self-attentions in five layers; a LoRA of rank 4 has 5.8 M."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL)
        table = LayerTable.of(unet)
        assert table.grids == ((64, 64), (32, 32), (32, 32), (32, 32), (64, 64))
        assert table.parse("mid,up") == {2, 3, 4} and table.parse("first_up") == {3}
        layers = [table.layer_of(name) for name in unet.attn_processors if "attn1" in name]
        assert [layers.count(n) for n in range(5)] == [4, 20, 10, 30, 6]
        assert LayerTable.of(unet, (96, 160)).grids[3] == (24, 40)
        assert round(sum(p.numel() for p in unet.parameters()) / 1e7) == 257
        found = lora.add(unet, 4, 4, ["to_q", "to_k", "to_v", "to_out.0"], seed=0)
        assert round(sum(p.numel() for p in found) / 1e5) == 58


def test_sd35_medium() -> None:
    """24 blocks, 13 of them with image-only attention; the preset's LoRA is in joint attention."""
    settings = PRESETS["sd3"]()
    with torch.device("meta"):
        network = SD3Transformer2DModel(**SD35_MEDIUM)
        table = network.layer_table((64, 64))
        assert len(table.blocks) == 24 and set(table.grids) == {(32, 32)}
        assert table.parse("dual") == set(range(13))
        assert table.parse(settings.mask.layers) == {9}
        assert 2.2e9 < sum(p.numel() for p in network.parameters()) < 2.6e9
        targets = settings.train.lora_targets.split(",")
        lora.add(network, settings.train.lora_rank, settings.train.lora_alpha, targets, seed=0)
        names = [name for name, p in network.named_parameters() if p.requires_grad]
        assert not any(".attn2." in name for name in names)
        # Eight projections of two matrices; the last block has no text output.
        assert len(names) == 2 * (8 * 24 - 1)
