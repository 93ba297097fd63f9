"""The factor that keeps gradients inside float16's range on their way back through a network."""

import torch

START = 1024.0
LOWEST = 2.0**-10
GROWTH_INTERVAL = 50


class LossScale:
    """GradScaler's rule: halved where a gradient overflows, doubled after a run of good steps.

    Here, a round has a few optimiser steps, each over thousands of denoising steps. A step that
    overflows is therefore repeated, not skipped. The scale grows after 50 good steps instead of
    2000, and never beyond its initial value: each attempt would cost a repeated step. Float32 and
    bfloat16 have enough range and keep a scale of 1.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.adapts = dtype == torch.float16
        self.value = START if self.adapts else 1.0
        self._good = 0

    def lower(self) -> bool:
        """Lower the scale after a gradient that is not finite; False if that cannot help."""
        if not self.adapts or self.value <= LOWEST:
            return False
        self.value, self._good = self.value / 2, 0
        return True

    def good(self) -> None:
        """Count a finite gradient; raises the scale after enough of them."""
        self._good += 1
        if self.adapts and self._good % GROWTH_INTERVAL == 0:
            self.value = min(2 * self.value, START)

    def state(self) -> dict[str, float]:
        """The state for a checkpoint; empty if the scale is always 1."""
        return {"value": self.value, "good": self._good} if self.adapts else {}

    def restore(self, state: dict[str, float]) -> None:
        """Continue from what `state` returned, or from the start if it is empty."""
        if self.adapts and state:
            self.value, self._good = float(state["value"]), int(state["good"])
