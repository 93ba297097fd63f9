"""Prompts, their items, and the positions of items among the tokens."""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dfusion.errors import UserError


@dataclass(frozen=True)
class Item:
    """A word of the prompt whose region the mask covers.

    name: a word or phrase ("cat", "traffic light"; "dog#2" is the second dog), or a 0-based word
        position, as the released files have it.
    threshold: for Eq. 4; None means Otsu's threshold.
    """

    name: str | int
    threshold: float | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt with its items."""

    text: str
    items: tuple[Item, ...]

    @property
    def thresholds(self) -> tuple[float | None, ...]:
        return tuple(item.threshold for item in self.items)


def join(
    texts: Sequence[str],
    items: Mapping[str, Sequence[str | int]],
    thresholds: Mapping[str, Sequence[float | None]] | float | None,
    source: str = "--config.item_idx_file",
) -> tuple[Prompt, ...]:
    """Prompts from the contents of a prompt, an item and a mask file.

    thresholds: per prompt, or one for all (None: Otsu). source: the item file or flag, for error
    messages. Raises UserError if a prompt has no items, or not as many thresholds as items.
    """
    prompts = []
    for text in texts:
        names = items.get(text)
        if not names:
            raise UserError(f"{source}: no items for the prompt '{text}'; add its item words")
        if isinstance(thresholds, Mapping):
            values = thresholds.get(text)
            if values is None:
                raise UserError(
                    f"--config.mask_thr_file: no thresholds for '{text}'; add them, or leave the "
                    "flag empty to use --config.mask_thr for all prompts"
                )
        else:
            values = [thresholds] * len(names)
        if len(values) != len(names):
            raise UserError(
                f"--config.mask_thr_file: {len(values)} thresholds for the {len(names)} items of "
                f"'{text}'; give one for each"
            )
        prompts.append(Prompt(text, tuple(Item(n, v) for n, v in zip(names, values, strict=True))))
    return tuple(prompts)


def occurrences(text: str, name: str | int) -> list[list[int]]:
    """Word positions of each occurrence of an item: one list of consecutive words per occurrence.

    Case and surrounding punctuation are ignored. Raises UserError if the prompt lacks the item.
    """
    words = [word.strip(string.punctuation).lower() for word in text.split()]
    if isinstance(name, int):
        if not 0 <= name < len(words):
            raise UserError(f"item position {name} is outside the prompt '{text}'; count from 0")
        return [[name]]
    phrase, _, which = name.lower().partition("#")
    wanted = [word.strip(string.punctuation) for word in phrase.split()]
    found = [
        list(range(i, i + len(wanted)))
        for i in range(len(words) - len(wanted) + 1)
        if wanted and words[i : i + len(wanted)] == wanted
    ]
    if which:
        if which not in map(str, range(1, len(found) + 1)):
            raise UserError(f"item '{name}': the prompt '{text}' has {len(found)} of them")
        return [found[int(which) - 1]]
    if not found:
        raise UserError(f"item '{name}' is not in the prompt '{text}'; use a word it contains")
    return found


def item_columns(
    prompt: Prompt, tokens_of: Callable[[str], list[int]], max_length: int
) -> list[list[list[int]]]:
    """Token columns of each item: [item][occurrence] -> columns; the start token is column 0.

    tokens_of: token ids of a text, without special tokens. max_length: of the tokenizer, including
    the start and end tokens. CLIP's byte-pair encoding never joins words, so a prompt's tokens are
    the tokens of its words, one after the other. A tokenizer for which this fails is refused.
    """
    words = prompt.text.split()
    parts = [tokens_of(word) for word in words]
    if [t for part in parts for t in part] != tokens_of(prompt.text):
        raise UserError(f"the tokenizer joins words of '{prompt.text}'; items cannot be located")
    starts = [1 + sum(len(p) for p in parts[:i]) for i in range(len(words))]
    bare = [_bare(word, part, tokens_of) for word, part in zip(words, parts, strict=True)]
    columns = []
    for item in prompt.items:
        spans = [
            [starts[w] + c for w in span for c in bare[w]]
            for span in occurrences(prompt.text, item.name)
        ]
        if not all(spans):
            raise UserError(f"item '{item.name}' of '{prompt.text}' has no token of its own")
        if max(c for span in spans for c in span) >= max_length - 1:
            raise UserError(
                f"item '{item.name}' of '{prompt.text}' lies beyond the {max_length} tokens the "
                "text encoder reads; shorten the prompt"
            )
        columns.append(spans)
    return columns


def _bare(word: str, tokens: list[int], tokens_of: Callable[[str], list[int]]) -> range:
    """Positions of a word's tokens without those of surrounding punctuation: "(cat)," gives cat.

    All positions if the punctuation has no tokens of its own, or if there is nothing else.
    """
    core = word.strip(string.punctuation)
    before, after = word.split(core, 1) if core else ("", "")
    around = [tokens_of(text) if text else [] for text in (before, core, after)]
    if not core or [t for part in around for t in part] != tokens:
        return range(len(tokens))
    return range(len(around[0]), len(tokens) - len(around[2]))
