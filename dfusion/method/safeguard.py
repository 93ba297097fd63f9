"""The loser's gradient held back where it would undo the winner's (Diffusion-SDPO)."""

import torch
from torch import Tensor


def loser_scale(pulls: Tensor, limit: float) -> Tensor:
    """(B,): the factor of the loser's gradient, from both log-probs' gradients at the output.

    pulls: (B, 2, …), the gradients g_w of the winner and g_l of the loser, up to a common factor. A
    step along g_w - s g_l changes the winner's log-prob by |g_w|^2 - s g_w g_l, to first order and
    if both sides move the same parameters alike. The factor

        s = min(1, limit |g_w|^2 / (g_w g_l))   where g_w g_l > 0, else 1

    leaves at least (1 - limit) of the winner's gain. Their 1 - mu is `limit`. Each pair and step
    has its own factor, whatever the batch.
    """
    winner, loser = pulls.flatten(2).unbind(1)
    along = (winner * loser).sum(1)
    allowed = limit * winner.square().sum(1)
    return torch.where(along > allowed, allowed / along, 1.0)


def with_loser_scaled(log_prob: Tensor, scale: Tensor) -> Tensor:
    """The same log-probs, (B, 2), but with the gradient of side 1 multiplied by `scale`, (B,)."""
    winner, loser = log_prob.unbind(1)
    fixed = loser.detach()
    return torch.stack([winner, fixed + scale * (loser - fixed)], 1)
