"""The factor that keeps gradients inside float16's range on their way back through a network."""

import torch

START = 1024.0
LOWEST = 2.0**-10
GROWTH_INTERVAL = 50


class LossScale:
    """GradScaler's rule: halved where a gradient overflows, doubled after a run of good steps.

    There are a few optimiser steps a round here, each of thousands of denoising steps. So a step
    that overflowed is repeated instead of skipped, the scale grows after 50 good steps and not
    after 2000, and no further than to where it began: to try for more would cost a repeated step
    each time. Float32 and bfloat16 have the range and keep a scale of 1.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.adapts = dtype == torch.float16
        self.value = START if self.adapts else 1.0
        self._good = 0

    def lower(self) -> bool:
        """After a gradient that is not finite; False where a lower scale is no remedy."""
        if not self.adapts or self.value <= LOWEST:
            return False
        self.value, self._good = self.value / 2, 0
        return True

    def good(self) -> None:
        """After a gradient that is finite."""
        self._good += 1
        if self.adapts and self._good % GROWTH_INTERVAL == 0:
            self.value = min(2 * self.value, START)

    def state(self) -> dict[str, float]:
        """For a checkpoint; empty where the scale is always 1."""
        return {"value": self.value, "good": self._good} if self.adapts else {}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from what `state` gave; from the start where it is empty."""
        if self.adapts and state:
            self.value, self._good = float(state["value"]), int(state["good"])
