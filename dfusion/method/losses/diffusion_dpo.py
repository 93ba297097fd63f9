"""DPO on noised final latents: Diffusion-DPO (Wallace et al. 2023, 2311.12908)."""

from dataclasses import dataclass

import torch.nn.functional as F

from dfusion.method.losses.contract import ForwardLoss, Steps, Value


@dataclass(frozen=True)
class DiffusionDPO(ForwardLoss):
    """Their Eq. 14: -log sigmoid(beta / 2 (agreement gained on the target - gained on the base)).

    The agreement is minus the mean squared error of the predicted noise, and gained is what the
    policy has over the one that `reference` names: that of the start of the "round", or the
    "initial" model, as in the paper. The mean, and with it the half, is that of their code, where
    beta is 2000 to 5000.
    """

    diffusion_beta: float = 5000.0
    reference: str = "round"
    pairwise = True

    def __call__(self, steps: Steps) -> Value:
        target, base = (steps.log_prob - steps.old).unbind(-1)
        return Value(-F.logsigmoid(self.diffusion_beta / 2 * (target - base)))
