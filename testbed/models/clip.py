"""The shape of the testbed's CLIP text encoders."""

from __future__ import annotations

from transformers import CLIPTextConfig, CLIPTokenizer

from testbed.world.tokens import LENGTH


def clip_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        max_position_embeddings=LENGTH,
        hidden_act="gelu",
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
