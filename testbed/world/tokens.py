"""A CLIP tokenizer over the testbed's words: each word is one token, others fall to characters.

The merges come from byte-pair encoding run on the word list until every word is whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from testbed.world.words import vocabulary

LENGTH = 16
START, END = "<|startoftext|>", "<|endoftext|>"
CHARACTERS = "!\"#$%&'()*+,-./0123456789:;<=>?@[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"

Pair = tuple[str, str]


def _merge(pieces: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return tuple(merged)


def learn_merges(words: list[str]) -> list[Pair]:
    """Byte-pair merges, most frequent pair first, until each word is one piece."""
    split = [(*word[:-1], word[-1] + "</w>") for word in words]
    merges = []
    while counts := Counter(pair for pieces in split for pair in pairwise(pieces)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        split = [_merge(pieces, best) for pieces in split]
    return merges


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write vocab.json, merges.txt and the configuration; return the loaded tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(vocabulary())
    pieces = [*CHARACTERS, *(c + "</w>" for c in CHARACTERS), *(a + b for a, b in merges)]
    vocab = {piece: i for i, piece in enumerate([*dict.fromkeys(pieces), START, END])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=LENGTH,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def numbers(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int = LENGTH
) -> Tensor:
    """(N, length) token numbers of texts, padded."""
    return tokenizer(
        list(texts), padding="max_length", max_length=length, return_tensors="pt"
    ).input_ids
