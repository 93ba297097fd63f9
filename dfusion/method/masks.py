"""From cross-attention maps to fusion masks (Eq. 4)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def item_maps(token_maps: Tensor, items: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Combine the maps of tokens into maps of items.

    token_maps: (..., J, gh, gw). items: for each item, its occurrences in the prompt; for each
    occurrence, the indices of its tokens into J. The tokens of an occurrence are averaged, so that
    thresholds keep their scale; of several occurrences, the largest value is taken. Returns
    (..., I, gh, gw).
    """
    return torch.stack(
        [
            torch.stack([token_maps[..., list(tokens), :, :].mean(-3) for tokens in item]).amax(0)
            for item in items
        ],
        dim=-3,
    )


def otsu(maps: Tensor) -> Tensor:
    """Otsu's threshold of each map (Otsu 1979): the split with the largest between-class variance.

    maps: (..., gh, gw). Returns (..., 1, 1): the smallest value of the upper class, found without a
    histogram. For a constant map this is its value, so that every cell passes.
    """
    values = maps.flatten(-2).double().sort(-1).values
    cells = values.shape[-1]
    below = torch.arange(1, cells, device=maps.device)  # size of the lower class of each split
    sums = values.cumsum(-1)
    mean_below = sums[..., :-1] / below
    mean_above = (sums[..., -1:] - sums[..., :-1]) / (cells - below)
    between = below * (cells - below) * (mean_above - mean_below).square()
    between = between * (values[..., 1:] > values[..., :-1])  # equal values stay together
    best = between.argmax(-1, keepdim=True) + (values[..., :1] < values[..., -1:]).long()
    return values.gather(-1, best)[..., None].to(maps.dtype)


def binarise(maps: Tensor, thresholds: Sequence[float | None]) -> Tensor:
    """(map >= threshold) for each item; None stands for Otsu's threshold of the map itself.

    maps: (..., I, gh, gw), thresholds: I values. Returns bool of the same shape.
    """
    if maps.shape[-3] != len(thresholds):
        raise ValueError(f"{maps.shape[-3]} item maps but {len(thresholds)} thresholds")
    layers = []
    for i, threshold in enumerate(thresholds):
        item = maps[..., i, :, :]
        layers.append(item >= (otsu(item) if threshold is None else threshold))
    return torch.stack(layers, dim=-3)


def merge(binary: Tensor, rule: str) -> Tensor:
    """One mask from the items' masks: (..., I, gh, gw) bool -> (..., gh, gw) bool.

    "xor" is Eq. 4: a cell claimed by an even number of items is left out. "or": released code.
    """
    if rule == "xor":
        return binary.sum(-3) % 2 == 1
    if rule == "or":
        return binary.any(-3)
    raise ValueError(f"unknown merge rule '{rule}'; choose xor or or")


def elsewhere(masks: Tensor, rng: torch.Generator) -> Tensor:
    """The masks, (..., gh, gw), shifted to a random other place; they wrap around at the edges."""
    height, width = masks.shape[-2:]
    shift = int(torch.randint(1, height * width, (), generator=rng))
    return masks.roll(divmod(shift, width), (-2, -1))


def fusion_mask(maps: Tensor, thresholds: Sequence[float | None], rule: str) -> Tensor:
    """Eq. 4: (..., I, gh, gw) maps -> (..., gh, gw) bool."""
    return merge(binarise(maps, thresholds), rule)


def cell_weights(masks: Tensor, outside: float, size: tuple[int, int]) -> Tensor:
    """Weights of a latent's cells in the log-prob of a step, from the step's mask.

    masks: (B, gh, gw) bool. outside: the weight of a cell outside the mask, where one inside has 1.
    Returns (B, h, w) for `size` (h, w), scaled to a mean of 1. If the mask is empty or covers
    everything, the log-prob is therefore the unweighted one.

    A target's step differs from the unfused policy's where the mask is: there the reference's keys
    and values moved its mean. Outside, target and base have the same noise and nearly the same
    states, so that their gradients differ by little but the noise. This is only true of a target
    that was fused and its base. Two samples differ everywhere: their likelihoods compare only as a
    whole, and a mask would leave out most of what one was preferred for.
    """
    inside = F.interpolate(masks[:, None].float(), size)[:, 0]
    weights = inside + outside * (1 - inside)
    mean = weights.mean((1, 2), keepdim=True)
    return torch.where(mean > 0, weights / mean, 1.0)
