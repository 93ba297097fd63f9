"""The loser's gradient held back where it would undo the winner's (Diffusion-SDPO)."""

import torch
from torch import Tensor


def loser_scale(pulls: Tensor, slopes: Tensor, limit: float) -> Tensor:
    """(B,): the factor of the loser's gradient, from both log-probs' gradients at the output.

    pulls: (B, 2, …), the gradients g_w of the winner and g_l of the loser, up to a common factor.
    slopes: (B, 2), the loss's derivatives with respect to the log-probs, of sizes a_w and a_l. A
    step along a_w g_w - s a_l g_l changes the winner's log-prob by a_w |g_w|^2 - s a_l g_w g_l, to
    first order and if both sides move the same parameters alike. The factor

        s = min(1, limit a_w |g_w|^2 / (a_l g_w g_l))   where a_l g_w g_l > 0, else 1

    leaves at least (1 - limit) of the winner's gain. In the paper a_w = a_l; `limit` is its 1 - mu.
    Each pair and step has its own factor, whatever the batch.
    """
    winner, loser = pulls.flatten(2).unbind(1)
    along = slopes[:, 1].abs() * (winner * loser).sum(1)
    allowed = limit * slopes[:, 0].abs() * winner.square().sum(1)
    return torch.where(along > allowed, allowed / along, 1.0)


def with_loser_scaled(log_prob: Tensor, scale: Tensor) -> Tensor:
    """The same log-probs, (B, 2), but with the gradient of side 1 multiplied by `scale`, (B,)."""
    winner, loser = log_prob.unbind(1)
    fixed = loser.detach()
    return torch.stack([winner, fixed + scale * (loser - fixed)], 1)
