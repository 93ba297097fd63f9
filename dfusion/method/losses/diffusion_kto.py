"""KTO on noised final latents: Diffusion-KTO (Li et al. 2024, 2404.04465)."""

from dataclasses import dataclass

import torch

from dfusion.method.losses.contract import ForwardLoss, Steps, Value


@dataclass(frozen=True)
class DiffusionKTO(ForwardLoss):
    """Targets are liked, bases disliked, each by itself: 1 - sigmoid(± (Q - Q_ref)).

    Q is beta times the agreement gained over the reference (see DiffusionDPO; there is no half in
    their code), and Q_ref its mean over the steps of the optimiser step, but at least 0: it stands
    for the KL to the reference. With several processes, each takes the mean over its own steps.
    """

    diffusion_beta: float = 5000.0
    reference: str = "round"
    pairwise = True
    whole_update = True

    def __call__(self, steps: Steps) -> Value:
        gained = self.diffusion_beta * (steps.log_prob - steps.old)
        usual = gained.detach().mean().clamp(min=0)
        liked, disliked = (gained - usual).unbind(-1)
        loss = 2 - torch.sigmoid(liked) - torch.sigmoid(-disliked)
        return Value((steps.weight * loss).sum())
