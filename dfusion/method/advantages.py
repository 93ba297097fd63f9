"""Rewards normalised per prompt, over this and all earlier rounds (Appendix C, DDPO and DPOK)."""

from collections.abc import Mapping, Sequence

import numpy as np

FLOOR = 1e-6  # added to the standard deviation


def statistics(history: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Mean and (population) standard deviation of the plain samples' scores of each prompt.

    history: prompt -> scores of all plain samples of this and earlier rounds. Targets are
    normalised with the same statistics but do not contribute to them.
    """
    return {
        prompt: (float(np.mean(scores)), float(np.std(scores)))
        for prompt, scores in history.items()
    }


def normalised(score: float, mean: float, std: float) -> float:
    """(R - mean) / (std + 1e-6); 0 for every sample of a prompt whose scores are all equal."""
    return (score - mean) / (std + FLOOR)
