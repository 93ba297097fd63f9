"""What a loss is given and what it returns.

A loss is a frozen dataclass. Its fields have the names of the settings that fill them.

Log-probs come from Sampler.log_prob and are means over the latent's dimensions. The paper's ratio
p_theta / p_theta_old is therefore a ratio per dimension here: exp(log_prob - old).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """N denoising steps of both images of a pair: side 0 is the preferred image, side 1 the base.

    log_prob: (N, 2), of the sampled transitions, under the policy being trained.
    old: (N, 2), the same under theta_old, or under the initial model if `Loss.to_initial`.
    kl: (N, 2), KL(p_theta || p_theta_old) per dimension; zeros unless `Loss.needs_means`.
    advantage: (N, 2), rewards of the two images, normalised per prompt.
    weight: (N,), the weight of each step's loss. i: (N,) long, the step's index from x_T.
    pair, prompt: (N,) long, the numbers of the step's pair and prompt within the round.
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
        """(N, 2): p_theta / p_theta_old per dimension; exactly 1 where the log-probs are equal."""
        return torch.exp(self.log_prob - self.old)


@dataclass(frozen=True)
class Value:
    """loss: (N,), one per step, or () for a loss that is no sum over steps. clipped: (N, 2) bool,
    whether clipping removes the gradient of a ratio; None without clipping."""

    loss: Tensor
    clipped: Tensor | None = None


class Loss(ABC):
    """A loss on denoising steps. Gradients flow only through `Steps.log_prob` and `Steps.kl`.

    pairwise: the gradient is zero at steps where both images have the same states.
    needs_means: the loss reads `Steps.kl`.
    whole_update: the loss is no sum over steps: it may depend on the sum over a trajectory, or on
        all samples of a prompt. It is called once with all denoising steps of an optimiser step,
        applies `Steps.weight` itself, and costs one more forward pass. It sees all steps of a
        pair, unless train.timestep_fraction leaves some out. It sees all pairs of a prompt only
        with one process and train.updates_per_inner_epoch 1.
    """

    pairwise: ClassVar[bool] = False
    needs_means: ClassVar[bool] = False
    whole_update: ClassVar[bool] = False

    @property
    def to_initial(self) -> bool:
        """Whether `Steps.old` is taken from the initial model instead of theta_old."""
        return False

    @abstractmethod
    def __call__(self, steps: Steps) -> Value: ...
