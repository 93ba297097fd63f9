"""A pairing rule of one's own, as `--config.pair.rule tests.rules:reddest` plugs it in."""

import numpy as np

from dfusion.method.pairing import Group


def reddest(group: Group) -> list[tuple[int, int]]:
    """The image with most red is the reference of all others of its prompt."""
    red = [np.asarray(group.image(n))[..., 0].mean() for n in range(len(group.scores))]
    best = red.index(max(red))
    return [(best, n) for n in range(len(red)) if n != best]
