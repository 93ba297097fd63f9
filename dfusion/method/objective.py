"""A loss with the options that every loss has: step weights and a KL to the initial model."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dfusion.method.losses import DPO, Loss, Steps, Value


@dataclass(frozen=True)
class Objective:
    """What training minimises.

    kl_initial: weight of the KL to the initial model. step_weights: T numbers, for t = T to
    1; empty if all are 1.
    """

    loss: Loss = field(default_factory=DPO)
    kl_initial: float = 0.0
    step_weights: tuple[float, ...] = ()

    @property
    def pairwise(self) -> bool:
        """Whether the gradient is zero at steps where both images have the same states."""
        return self.loss.pairwise and self.kl_initial == 0

    @property
    def needs_initial(self) -> bool:
        """Whether the initial model's transitions are needed."""
        return self.kl_initial > 0 or self.loss.to_initial

    def weights(self, steps: int) -> Tensor:
        """(T,) weights of the steps' losses."""
        return torch.tensor(self.step_weights) if self.step_weights else torch.ones(steps)

    def weighs(self, i: int) -> bool:
        """Whether step i has any weight."""
        return not self.step_weights or self.step_weights[i] > 0

    def __call__(self, steps: Steps, kl_initial: Tensor) -> Value:
        """kl_initial: (N, 2), KL to the initial model per dimension; zeros if its weight is 0.

        The returned loss is weighted. Training minimises its sum.
        """
        value = self.loss(steps)
        added = self.kl_initial * kl_initial.sum(-1) * steps.weight
        if self.loss.whole_update:
            return Value(value.loss.sum() + added.sum(), value.clipped)
        return Value(value.loss * steps.weight + added, value.clipped)
