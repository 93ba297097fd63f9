"""DDPO: a policy gradient (Eq. 8; Black et al. 2024)."""

from dataclasses import dataclass

import torch

from dfusion.method.losses.contract import Loss, Steps, Value


@dataclass(frozen=True)
class DDPO(Loss):
    """Eq. 8 as PPO's clipped surrogate, for both images: max(-A r, -A clamp(r, 1 - eps, 1 + eps)).

    At r = 1 its gradient is that of Eq. 8. eps: 0 disables clipping. adv_clip_max: A is first
    clamped to ± this value.
    """

    eps: float = 0.1
    adv_clip_max: float = 5.0

    def __call__(self, steps: Steps) -> Value:
        advantage = steps.advantage.clamp(-self.adv_clip_max, self.adv_clip_max)
        free = -advantage * steps.ratio
        held = -advantage * steps.ratio.clamp(1 - self.eps, 1 + self.eps) if self.eps else free
        return Value(torch.maximum(free, held).sum(-1), (held > free).detach())
