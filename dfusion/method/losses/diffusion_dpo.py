"""DPO on noised final latents: Diffusion-DPO (Wallace et al. 2023, 2311.12908)."""

from dataclasses import dataclass

import torch.nn.functional as F

from dfusion.method.losses.contract import ForwardLoss, Steps, Value


@dataclass(frozen=True)
class DiffusionDPO(ForwardLoss):
    """Eq. 14 of their paper: -log sigmoid(beta / 2 (gain on the target - gain on the base)).

    The gain is the agreement under the policy minus that under the one that `reference` names: the
    policy at the start of the "round" or, as in their paper, the "initial" model. The agreement is
    minus the mean squared error of the predicted noise. The mean and the factor 1/2 are those of
    their code, where beta is 2000 to 5000.
    """

    diffusion_beta: float = 5000.0
    reference: str = "round"
    pairwise = True

    def __call__(self, steps: Steps) -> Value:
        target, base = (steps.log_prob - steps.old).unbind(-1)
        return Value(-F.logsigmoid(self.diffusion_beta / 2 * (target - base)))
