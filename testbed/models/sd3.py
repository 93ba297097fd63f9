"""The transformer of the SD3-shaped model: a stock SD3Transformer2DModel, and its text encoders.

Two latent cells a side make a token, so that there are 64 image tokens in an 8x8 grid. Before
them, text: LENGTH tokens of the two CLIPs (their channels side by side, then zeros), then T5_LENGTH
of T5.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from testbed.models.clip import clip_config
from testbed.world.tokens import LENGTH
from testbed.world.words import vocabulary

CLIP_WIDTHS = (128, 32)
T5_LENGTH = 12
SHIFT = 1.0  # of the scheduler; sigmas are not moved towards noise
CONFIG = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 6,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "joint_attention_dim": sum(CLIP_WIDTHS),
    "caption_projection_dim": 128,
    "pooled_projection_dim": sum(CLIP_WIDTHS),
    "out_channels": 4,
    "pos_embed_max_size": 8,
    "qk_norm": "rms_norm",
}
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def build() -> SD3Transformer2DModel:
    """A fresh network whose blocks do nothing at first (adaLN-zero)."""
    network = SD3Transformer2DModel(**CONFIG)
    modulations = [
        norm.linear
        for block in network.transformer_blocks
        for norm in (block.norm1, block.norm1_context)
    ]
    for linear in (*modulations, network.norm_out.linear, network.proj_out):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return network


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, an end token, no start token."""
    words = {word: i for i, word in enumerate((PAD, END, UNKNOWN, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, words[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=T5_LENGTH,
    )


def t5(tokenizer: PreTrainedTokenizerFast) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=sum(CLIP_WIDTHS),
            d_kv=16,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


class Text(nn.Module):
    """The three encoders as StableDiffusion3Pipeline reads them."""

    def __init__(self, tokenizer: CLIPTokenizer, words: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.clips = nn.ModuleList(
            CLIPTextModelWithProjection(clip_config(tokenizer, width)) for width in CLIP_WIDTHS
        )
        self.t5 = t5(words)

    def read_clip(self, folder: Path) -> None:
        """Start the first CLIP from the trained text encoder of a Stable Diffusion folder."""
        trained = CLIPTextModelWithProjection.from_pretrained(folder)
        state = {k: v for k, v in trained.state_dict().items() if "text_projection" not in k}
        self.clips[0].load_state_dict(state, strict=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids (U, LENGTH + T5_LENGTH); tokens (U, the same, C), pooled (U, C)."""
        outputs = [clip(ids[:, :LENGTH], output_hidden_states=True) for clip in self.clips]
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        words = self.t5(ids[:, LENGTH:])[0]
        return torch.cat([tokens, words], dim=1), torch.cat([o[0] for o in outputs], dim=-1)
