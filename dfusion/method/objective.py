"""A loss, with what any may have: weights of the denoising steps, a KL to the initial model."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dfusion.method.losses import DPO, Loss, Steps, Value


@dataclass(frozen=True)
class Objective:
    """What training minimises.

    kl_initial: weight of the KL to the initial model. step_weights: T numbers from t = T to 1;
    empty for all 1.
    """

    loss: Loss = field(default_factory=DPO)
    kl_initial: float = 0.0
    step_weights: tuple[float, ...] = ()

    @property
    def pairwise(self) -> bool:
        """Whether steps at which both images have the same states have no gradient."""
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
        """kl_initial: (N, 2), KL to the initial model per dimension; zeros where it has no weight.

        The value's loss is weighted: its sum is what is minimised.
        """
        value = self.loss(steps)
        added = self.kl_initial * kl_initial.sum(-1) * steps.weight
        if self.loss.whole_update:
            return Value(value.loss.sum() + added.sum(), value.clipped)
        return Value(value.loss * steps.weight + added, value.clipped)
