"""What a loss is given and what it returns.

A loss is a frozen dataclass. Its fields have the names of the settings that fill them.

Log-probs are means over the latent's dimensions. The paper's ratio p_theta / p_theta_old is
therefore a ratio per dimension here: exp(log_prob - old).

Most losses compare the transitions that were sampled. A `ForwardLoss` does not look at
trajectories: it adds noise to the final latents of both images, as in the training of a diffusion
model, and asks how well the network then predicts.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """N denoising steps of both images of a pair: side 0 is the preferred one, usually the target
    or the reference; side 1 is the other, usually the base.

    log_prob: (N, 2), of the sampled transitions, under the policy being trained; for a
        `ForwardLoss`, its `agreement`.
    old: (N, 2), the same under theta_old, or under the initial model if `Loss.to_initial`.
    kl: (N, 2), KL(p_theta || p_theta_old) per dimension; zeros unless `Loss.needs_means`.
    advantage: (N, 2), rewards of the two images, normalised per prompt; see `Loss.grouped`.
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
    """loss: (N,), one per step, or () for a loss that is not a sum over steps. clipped: (N, 2)
    bool, whether clipping removes the gradient of a ratio; None without clipping."""

    loss: Tensor
    clipped: Tensor | None = None


class Loss(ABC):
    """A loss on denoising steps. Gradients flow only through `Steps.log_prob` and `Steps.kl`.

    process: what a step is: a sampled "transition", or noise added to final latents ("forward").
    pairwise: side 0 is preferred to side 1, and the gradient is zero where both are the same.
    grouped: advantages are normalised over a prompt's samples of this round, not of all rounds.
    needs_means: the loss reads `Steps.kl`, or `Noised.old`.
    whole_update: the loss is not a sum over steps: it may depend on the sum over a trajectory, or
        on all samples of a prompt. It is called once with all denoising steps of an optimiser step
        that its process has, applies `Steps.weight` itself, and costs one more forward pass. It
        sees all steps of a pair, unless train.timestep_fraction leaves some out. It sees all pairs
        of a prompt only with one process and train.updates_per_inner_epoch 1.
    """

    process: ClassVar[Literal["transition", "forward"]] = "transition"
    pairwise: ClassVar[bool] = False
    grouped: ClassVar[bool] = False
    needs_means: ClassVar[bool] = False
    whole_update: ClassVar[bool] = False

    # The policy to compare with; a field of losses that let the user choose.
    reference: str = "round"

    @property
    def to_initial(self) -> bool:
        """Whether `Steps.old` is taken from the "initial" model instead of theta_old."""
        return self.reference == "initial"

    @abstractmethod
    def __call__(self, steps: Steps) -> Value: ...


@dataclass(frozen=True)
class Noised:
    """The noised final latents of N steps, all (N, 2, C, h, w); both images have the same noise.

    output: the network's. aim: the output of a perfect prediction: the noise, velocity or x_0 that
    was used. x0: the latents without noise. old: theta_old's output, if `Loss.needs_means`; else
    `output` without gradient. uphill: (N, 1, 1, 1, 1), 1 where a higher output leads to a higher
    x_0; -1 where it leads to a lower one, as for noise and velocity.
    """

    output: Tensor
    aim: Tensor
    x0: Tensor
    old: Tensor
    uphill: Tensor


class ForwardLoss(Loss):
    """A loss on noised final latents.

    Step i has the noise level of the sampler's step i, and noise that depends on (seed, round,
    pair, step) only. As in training, the network predicts without guidance.
    """

    process = "forward"

    def agreement(self, noised: Noised) -> Tensor:
        """(N, 2), in place of log-probs: minus the squared error of the output, per dimension."""
        return -(noised.output - noised.aim).square().flatten(2).mean(2)
