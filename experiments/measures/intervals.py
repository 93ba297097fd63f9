"""Gains with their uncertainty."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

Values = Sequence[float] | np.ndarray
Gain = tuple[float, float] | None  # mean and half of its 95 % interval; None where not measured


def gain(after: Values, before: Values) -> tuple[float, float]:
    """Mean of paired differences, and half the width of its 95 % interval (normal)."""
    difference = np.asarray(after) - np.asarray(before)
    return float(difference.mean()), 1.96 * float(difference.std(ddof=1)) / len(difference) ** 0.5


def gain_if_any(after: Values, before: Values) -> Gain:
    """`gain`, or None where nothing was measured."""
    return gain(after, before) if len(before) else None


def over_seeds(gains: Values) -> tuple[float, float]:
    """Mean of one gain a seed, and half the width of its 95 % interval (Student's t)."""
    n = len(gains)
    spread = float(np.std(gains, ddof=1)) / n**0.5
    return float(np.mean(gains)), float(stats.t.ppf(0.975, n - 1)) * spread


def over_groups(after: Values, before: Values, each: int) -> tuple[float, float]:
    """`over_seeds` of the mean paired differences of groups of `each`: images of one prompt, say,
    which are not independent of each other."""
    difference = np.asarray(after, float) - np.asarray(before, float)
    return over_seeds(difference.reshape(-1, each).mean(1))


def said(after: Values, before: Values) -> str:
    """0.700 -> 0.750 (+0.050 ± 0.010)"""
    more, wide = gain(after, before)
    return f"{np.mean(before):.3f} -> {np.mean(after):.3f} ({more:+.3f} ± {wide:.3f})"
