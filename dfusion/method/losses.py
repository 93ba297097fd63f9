"""The training losses, Eq. 6, 8 and 9, per denoising step.

Log-probs are those of DDIM.log_prob: means over the latent's dimensions. What the paper writes as a
ratio p_theta / p_theta_old is therefore the ratio per dimension, exp(log_prob - old_log_prob).
All arguments are (B,), one entry per (image, step); gradients flow through log_prob and kl only.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """value: (B,), to be averaged by the caller. ratio: (B,) or (B, 2), detached.

    clipped: like ratio, bool: the clip cuts off this entry's gradient.
    """

    value: Tensor
    ratio: Tensor
    clipped: Tensor


def ratio_of(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """p_theta / p_theta_old per dimension; exactly 1 where the two are the same number."""
    return torch.exp(log_prob - old_log_prob)


def dpo(
    target: Tensor,
    base: Tensor,
    old_target: Tensor,
    old_base: Tensor,
    beta: float = 0.1,
    form: str = "ratio",
    clip: float | None = 0.1,
) -> Loss:
    """Eq. 6: -log sigmoid(beta r_target - beta r_base).

    form "log_ratio" puts log r in place of r (D3PO). clip: r is clamped to 1 - clip … 1 + clip
    first (D3PO's code), or not at all for None.
    """
    if form not in ("ratio", "log_ratio"):
        raise ValueError(f"unknown form '{form}'; choose ratio or log_ratio")
    ratio = torch.stack([ratio_of(target, old_target), ratio_of(base, old_base)], -1)
    kept = ratio if clip is None else ratio.clamp(1 - clip, 1 + clip)
    term = kept.log() if form == "log_ratio" else kept
    value = -F.logsigmoid(beta * (term[:, 0] - term[:, 1]))
    return Loss(value, ratio.detach(), kept.detach() != ratio.detach())


def ddpo(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip: float = 0.1,
    most: float = 5.0,
) -> Loss:
    """Eq. 8 as PPO's clipped surrogate: max(-A r, -A clamp(r, 1 - clip, 1 + clip)).

    advantage: normalised rewards, clamped to -most … most. At r = 1 the gradient is Eq. 8's.
    """
    advantage = advantage.clamp(-most, most)
    ratio = ratio_of(log_prob, old_log_prob)
    free, held = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
    return Loss(torch.maximum(free, held), ratio.detach(), (held > free).detach())


def dpok(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    kl: Tensor,
    clip: float = 0.1,
    most: float = 5.0,
    alpha: float = 0.99,
    beta: float = 0.01,
) -> Loss:
    """Eq. 9: alpha times the clipped policy term plus beta times KL(p_theta || p_theta_old).

    kl: of the same step, from DDIM.kl, nats per dimension as the log-probs are.
    """
    policy = ddpo(log_prob, old_log_prob, advantage, clip, most)
    return Loss(alpha * policy.value + beta * kl, policy.ratio, policy.clipped)
