"""Which loss a denoising step of a pair has, with all its numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dfusion.method import losses


@dataclass(frozen=True)
class Objective:
    """Eq. 6, 8 or 9, and what may be added to them.

    clip: None for no clipping. reference: the policy that DPO compares with; the ratios of DDPO and
    DPOK are always to the round's first policy. kl_initial: weight of the KL to the initial model.
    step_weights: T numbers from t = T to 1; empty for all 1.
    """

    method: str = "dpo"
    beta: float = 0.1
    form: str = "ratio"
    clip: float | None = 0.1
    advantage_max: float = 5.0
    dpok_alpha: float = 0.99
    dpok_beta: float = 0.01
    reference: str = "round"
    kl_initial: float = 0.0
    step_weights: tuple[float, ...] = ()

    @property
    def pairwise(self) -> bool:
        """Whether steps at which both sides are equal have no gradient."""
        return self.method == "dpo" and self.kl_initial == 0

    @property
    def ratio_to_initial(self) -> bool:
        """Whether log-probs are compared with the initial model's instead of theta_old's."""
        return self.method == "dpo" and self.reference == "initial"

    @property
    def needs_initial(self) -> bool:
        """Whether the initial model's transitions are needed."""
        return self.kl_initial > 0 or self.ratio_to_initial

    @property
    def needs_means(self) -> bool:
        """Whether a KL to theta_old is needed, hence theta_old's means."""
        return self.method == "dpok"

    def weights(self, steps: int) -> Tensor:
        """(T,) weights of the steps' losses."""
        return torch.tensor(self.step_weights) if self.step_weights else torch.ones(steps)

    def weighs(self, i: int) -> bool:
        """Whether step i has any weight."""
        return not self.step_weights or self.step_weights[i] > 0

    def __call__(self, log_prob: Tensor, old: Tensor, advantage: Tensor, kl: Tensor,
                 kl_initial: Tensor) -> losses.Loss:  # fmt: skip
        """Per step, (B,), summed over both sides; all arguments (B, 2).

        old: log-probs under theta_old, or under the initial model if `ratio_to_initial`. kl: to
        theta_old; kl_initial: to the initial model; zeros where they are not needed.
        """
        loss = self._method(log_prob, old, advantage, kl)
        value = loss.value + self.kl_initial * kl_initial.sum(-1)
        return losses.Loss(value, loss.ratio, loss.clipped)

    def _method(self, log_prob: Tensor, old: Tensor, advantage: Tensor, kl: Tensor) -> losses.Loss:
        if self.method == "dpo":
            (target, base), (old_target, old_base) = log_prob.T, old.T
            return losses.dpo(target, base, old_target, old_base, self.beta, self.form, self.clip)
        sides = []
        clip = self.clip if self.clip is not None else float("inf")
        for s in (0, 1):
            terms = log_prob[:, s], old[:, s], advantage[:, s]
            if self.method == "ddpo":
                sides.append(losses.ddpo(*terms, clip, self.advantage_max))
            else:
                a, b = self.dpok_alpha, self.dpok_beta
                sides.append(losses.dpok(*terms, kl[:, s], clip, self.advantage_max, a, b))
        return losses.Loss(
            sides[0].value + sides[1].value,
            torch.stack([side.ratio for side in sides], -1),
            torch.stack([side.clipped for side in sides], -1),
        )
