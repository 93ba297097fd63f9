"""The training losses: Eq. 6 (DPO), 8 (DDPO) and 9 (DPOK), and the contract for others.

A loss is a frozen dataclass whose fields are named as the settings that fill them. To add one,
derive it from `Loss` and put it into LOSSES, or name it as --config.train.method module:Name.

Log-probs are those of DDIM.log_prob: means over the latent's dimensions. What the paper writes as a
ratio p_theta / p_theta_old is therefore the ratio per dimension, exp(log_prob - old).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """N denoising steps, each of both images of a pair: side 0 is preferred, side 1 is the base.

    log_prob: (N, 2), of the transitions that were walked, under the policy that is trained.
    old: (N, 2), the same under theta_old, or under the initial model where `Loss.to_initial`.
    kl: (N, 2), KL(p_theta || p_theta_old) per dimension; zeros unless `Loss.needs_means`.
    advantage: (N, 2), rewards of the two images, normalised per prompt.
    weight: (N,), of the step's loss. i: (N,) long, 0 is the step from x_T.
    pair, prompt: (N,) long, numbers of the step's pair and prompt in the round.
    """

    log_prob: Tensor
    old: Tensor
    kl: Tensor
    advantage: Tensor
    weight: Tensor
    i: Tensor
    pair: Tensor
    prompt: Tensor

    @property
    def ratio(self) -> Tensor:
        """(N, 2): p_theta / p_theta_old per dimension; exactly 1 where the two are one number."""
        return torch.exp(self.log_prob - self.old)


@dataclass(frozen=True)
class Value:
    """loss: (N,) by step, or () where the steps cannot be told apart. clipped: (N, 2) bool, the
    entries of the ratio whose gradient the clip range cuts off; None without a clip range."""

    loss: Tensor
    clipped: Tensor | None = None


class Loss(ABC):
    """A loss of denoising steps; gradients flow through `Steps.log_prob` and `Steps.kl` only.

    pairwise: there is no gradient at steps at which both images have the same states.
    needs_means: `Steps.kl` is needed.
    whole_update: the loss does not fall apart into steps (it is, say, a function of a trajectory's
        sum, or of all samples of a prompt): it is called once with all the steps of an optimiser
        step, multiplies by `Steps.weight` itself, and costs a forward pass more. All steps of a
        pair are there, unless train.timestep_fraction leaves some out; all pairs of a prompt are
        only with one process and train.updates_per_inner_epoch 1.
    """

    pairwise: ClassVar[bool] = False
    needs_means: ClassVar[bool] = False
    whole_update: ClassVar[bool] = False

    @property
    def to_initial(self) -> bool:
        """Whether `Steps.old` is the initial model's instead of theta_old's."""
        return False

    @abstractmethod
    def __call__(self, steps: Steps) -> Value: ...


@dataclass(frozen=True)
class DPO(Loss):
    """Eq. 6: -log sigmoid(beta r_target - beta r_base).

    ratio: "log_ratio" puts log r in place of r (D3PO, Yang et al. 2024). eps: r is clamped to
    1 - eps … 1 + eps first (D3PO's code); 0 for no clamp. reference: theta_old is that of the
    "round", or the "initial" model.
    """

    beta: float = 0.1
    ratio: str = "ratio"
    eps: float = 0.1
    reference: str = "round"
    pairwise = True

    @property
    def to_initial(self) -> bool:
        return self.reference == "initial"

    def __call__(self, steps: Steps) -> Value:
        ratio = steps.ratio
        kept = ratio.clamp(1 - self.eps, 1 + self.eps) if self.eps else ratio
        target, base = (kept.log() if self.ratio == "log_ratio" else kept).unbind(-1)
        loss = -F.logsigmoid(self.beta * target - self.beta * base)
        return Value(loss, kept.detach() != ratio.detach())


@dataclass(frozen=True)
class DDPO(Loss):
    """Eq. 8 as PPO's clipped surrogate, for both images: max(-A r, -A clamp(r, 1 - eps, 1 + eps)).

    At r = 1 its gradient is Eq. 8's. eps: 0 for no clip. adv_clip_max: A is clamped to that first.
    """

    eps: float = 0.1
    adv_clip_max: float = 5.0

    def __call__(self, steps: Steps) -> Value:
        advantage = steps.advantage.clamp(-self.adv_clip_max, self.adv_clip_max)
        free = -advantage * steps.ratio
        held = -advantage * steps.ratio.clamp(1 - self.eps, 1 + self.eps) if self.eps else free
        return Value(torch.maximum(free, held).sum(-1), (held > free).detach())


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


LOSSES: dict[str, type[Loss]] = {"dpo": DPO, "ddpo": DDPO, "dpok": DPOK}
