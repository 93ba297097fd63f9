"""Pairs that are fused in both directions."""

from dfusion.method.pairing.contract import Group
from dfusion.method.pairing.halves import halves


def both_ways(group: Group) -> list[tuple[int, int]]:
    """The pairs of `halves`, then the same pairs with their roles exchanged.

    In an exchanged pair, the better image is denoised again with the worse one's keys and values,
    and is preferred to that target. Fusion makes the predicted noise smaller, whatever it brings
    in. In the first pairs training is drawn towards this, in the exchanged ones away from it.
    """
    pairs = halves(group)
    return pairs + [(base, reference) for reference, base in pairs]
