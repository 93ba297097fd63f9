"""The released code's rule."""

from dfusion.method.pairing.contract import Group


def quarter(group: Group) -> list[tuple[int, int]]:
    """The released code: the top quarter, each twice, against the bottom half."""
    half = len(group.scores) // 2
    bases = group.ranked[len(group.scores) - half :]
    references = [n for n in group.ranked[: -(-half // 2)] for _ in range(2)][:half]
    return list(zip(references, bases, strict=True))
