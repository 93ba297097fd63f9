"""DPO on denoising steps (Eq. 6)."""

from dataclasses import dataclass

import torch.nn.functional as F

from dfusion.method.losses.contract import Loss, Steps, Value


@dataclass(frozen=True)
class DPO(Loss):
    """Eq. 6: -log sigmoid(beta r_target - beta r_base).

    ratio: "log_ratio" uses log r in place of r (D3PO, Yang et al. 2024). eps: r is first clamped to
    1 - eps … 1 + eps (as in D3PO's code); 0 disables this. reference: whether r compares with the
    policy at the start of the "round" or with the "initial" model.
    """

    beta: float = 0.1
    ratio: str = "ratio"
    eps: float = 0.1
    reference: str = "round"
    pairwise = True

    def __call__(self, steps: Steps) -> Value:
        ratio = steps.ratio
        kept = ratio.clamp(1 - self.eps, 1 + self.eps) if self.eps else ratio
        target, base = (kept.log() if self.ratio == "log_ratio" else kept).unbind(-1)
        loss = -F.logsigmoid(self.beta * target - self.beta * base)
        return Value(loss, kept.detach() != ratio.detach())
