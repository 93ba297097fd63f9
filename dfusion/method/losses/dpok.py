"""DPOK: a policy gradient with a KL (Eq. 9; Fan et al. 2023)."""

from dataclasses import dataclass

from dfusion.method.losses.contract import Loss, Steps, Value
from dfusion.method.losses.ddpo import DDPO


@dataclass(frozen=True)
class DPOK(Loss):
    """Eq. 9: dpok_alpha times DDPO's policy term plus dpok_beta times the KL to theta_old."""

    eps: float = 0.1
    adv_clip_max: float = 5.0
    dpok_alpha: float = 0.99
    dpok_beta: float = 0.01
    needs_means = True

    def __call__(self, steps: Steps) -> Value:
        policy = DDPO(self.eps, self.adv_clip_max)(steps)
        return Value(
            self.dpok_alpha * policy.loss + self.dpok_beta * steps.kl.sum(-1), policy.clipped
        )
