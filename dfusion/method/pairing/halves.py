"""The paper's rule."""

from dfusion.method.pairing.contract import Group


def halves(group: Group) -> list[tuple[int, int]]:
    """Algorithm 1: zip(top half, bottom half); of an odd number, the middle one is left out."""
    half = len(group.scores) // 2
    bases = group.ranked[len(group.scores) - half :]
    return list(zip(group.ranked[:half], bases, strict=True))
