"""A loss with the options that every loss has: step weights and a KL to the initial model."""

from dataclasses import dataclass, field

from torch import Tensor

from dfusion.method.losses import DPO, Loss, Steps, Value
from dfusion.method.sampler import Sampler
from dfusion.method.step_weights import Listed, StepWeights


@dataclass(frozen=True)
class Objective:
    """What training minimises.

    kl_initial: weight of the KL to the initial model. outside_weight: see masks.cell_weights.
    loser_limit: see safeguard.loser_scale; 0 for no safeguard.
    """

    loss: Loss = field(default_factory=DPO)
    kl_initial: float = 0.0
    step_weights: StepWeights = field(default_factory=Listed)
    outside_weight: float = 1.0
    loser_limit: float = 0.0

    @property
    def pairwise(self) -> bool:
        """Whether the gradient is zero at steps where both images have the same states."""
        return self.loss.pairwise and not self.forward and self.kl_initial == 0

    @property
    def forward(self) -> bool:
        """Whether the loss is one of noised final latents."""
        return self.loss.process == "forward"

    @property
    def masked(self) -> bool:
        """Whether log-probs of targets and their bases weigh the mask's cells differently."""
        return self.outside_weight != 1 and not self.forward

    @property
    def safeguarded(self) -> bool:
        """Whether the loser's gradient is held back."""
        return self.loser_limit > 0 and self.loss.pairwise

    def weights(self, sampler: Sampler) -> Tensor:
        """(T,) weights of the steps' losses."""
        return self.step_weights.of(sampler, self.forward)

    @property
    def needs_initial(self) -> bool:
        """Whether the initial model's transitions are needed."""
        return self.kl_initial > 0 or self.loss.to_initial

    def __call__(self, steps: Steps, kl_initial: Tensor) -> Value:
        """kl_initial: (N, 2), KL to the initial model per dimension; zeros if its weight is 0.

        The returned loss is weighted. Training minimises its sum.
        """
        value = self.loss(steps)
        added = self.kl_initial * kl_initial.sum(-1) * steps.weight
        if self.loss.whole_update:
            return Value(value.loss.sum() + added.sum(), value.clipped)
        return Value(value.loss * steps.weight + added, value.clipped)
