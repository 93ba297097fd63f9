"""Rewards normalised per prompt.

DDPO and DPOK take the statistics over this and all earlier rounds (Appendix C), GRPO over the
samples of this round.
"""

from collections.abc import Mapping, Sequence

import numpy as np

FLOOR = 1e-6  # added to the standard deviation


def statistics(history: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Mean and (population) standard deviation of the plain samples' scores of each prompt.

    history: prompt -> scores of all plain samples to normalise by. Targets are normalised with the
    same statistics but do not contribute to them.
    """
    return {
        prompt: (float(np.mean(scores)), float(np.std(scores)))
        for prompt, scores in history.items()
    }


def normalised(score: float, mean: float, std: float) -> float:
    """(R - mean) / (std + 1e-6); 0 for every sample of a prompt whose scores are all equal."""
    return (score - mean) / (std + FLOOR)
