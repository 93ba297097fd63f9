"""Degenerate rounds and how they are handled. Each case is reported once per round.

| case | outcome | reported |
|---|---|---|
| all scores of a prompt are equal | paired by index, as all ties are; a target that is not worse is adopted (Eq. 7) | prompts, counted |
| one image per prompt | refused before a model loads | the flag |
| a mask that is empty at every fused step | the target equals its base to the bit; at adoption threshold 1 it is adopted only if base and reference score the same | targets, counted |
| a mask that covers everything at every fused step | keys and values are the reference's everywhere | targets, counted |
| an item that is not in the prompt, or is named twice | refused before a model loads | flag, item, prompt |
| an item that the text encoder cuts off | refused before sampling | flag, item, prompt |
| a pair without any gradient (equal scores under DDPO and DPOK, a target that is its base) | adds nothing to the update; an optimiser step without any gradient is skipped, a round without any stops training | the gradient's norm, 0 |
| NaN or Inf in states, maps, images, scores, losses or gradients | the run stops; the files and checkpoints written so far are kept | round, sample or pair, step t |
"""  # noqa: E501

from collections.abc import Mapping, Sequence

from torch import Tensor


def equal_scores(by_prompt: Mapping[str, Sequence[float]]) -> str:
    """A note on prompts whose images all score the same; empty if there are none."""
    count = sum(len(set(scores)) == 1 for scores in by_prompt.values())
    if not count:
        return ""
    return f"{count} of {len(by_prompt)} prompts have only equal scores: paired by index"


def odd_masks(masks: Sequence[Tensor]) -> str:
    """A note on targets with an empty or a full mask; empty if there are none.

    masks: one per target, (T, gh, gw) bool, of the fused steps only.
    """
    fused = [mask for mask in masks if len(mask)]
    empty = sum(not bool(mask.any()) for mask in fused)
    full = sum(bool(mask.all()) for mask in fused)
    parts = []
    if empty:
        parts.append(f"{empty} of {len(masks)} masks are empty: these targets are their bases")
    if full:
        parts.append(f"{full} of {len(masks)} masks cover everything")
    return "; ".join(parts)
