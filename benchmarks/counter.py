"""UNet evaluations, counted by hooks on the UNet itself.

One evaluation is one guided sample: two rows of a call (one row where guidance is off). A backward
pass counts as one more. What gradient checkpointing computes again is not seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Count:
    """plain: forward without gradients. trained: forward with them. backward: on the way back."""

    plain: float = 0.0
    trained: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        return self.plain + self.trained + self.backward


@contextmanager
def counting(unet: nn.Module, guided: bool = True) -> Iterator[Count]:
    """Counts every call of `unet` in the block."""
    count = Count()
    rows_each = 2 if guided else 1

    def hook(module: nn.Module, args: object, output: Any) -> None:
        sample: Tensor = output[0]
        evaluations = len(sample) / rows_each
        if not sample.requires_grad:
            count.plain += evaluations
            return

        def went_back(gradient: Tensor) -> None:
            count.backward += evaluations

        count.trained += evaluations
        sample.register_hook(went_back)

    handle = unet.register_forward_hook(hook)
    try:
        yield count
    finally:
        handle.remove()
