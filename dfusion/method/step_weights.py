"""Weights of the denoising steps' losses."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dfusion.method.sampler import Sampler


class StepWeights(Protocol):
    """How much each of T denoising steps counts."""

    def weighs(self, i: int, steps: int) -> bool:
        """Whether step i of `steps` has any weight."""
        ...

    def of(self, sampler: Sampler, forward: bool = False) -> Tensor:
        """(T,) weights of the sampler's steps. forward: of a `ForwardLoss`."""
        ...


@dataclass(frozen=True)
class Listed:
    """Given numbers, one for each of t = T … 1; 1 for every step if there are none."""

    weights: tuple[float, ...] = ()

    def weighs(self, i: int, steps: int) -> bool:
        return not self.weights or self.weights[i] > 0

    def of(self, sampler: Sampler, forward: bool = False) -> Tensor:
        return torch.tensor(self.weights) if self.weights else torch.ones(len(sampler))


@dataclass(frozen=True)
class Equal:
    """Weights under which every step pulls equally hard at the network's output (Precise,
    2605.23522).

    A step's log-prob is -z^2 / 2, averaged over D dimensions, plus a constant, with
    z = (x_{t-1} - mean) / std and mean = x_scale x_t + output_scale output. Therefore

        d log_prob / d output = z output_scale / (std D)

    where z is standard normal noise at every step, but |output_scale| / std differs: for SD2.1 in
    20 steps, it is 5.4 at t = 2 and 0.6 to 1.1 at all others. The weights are its inverse, scaled
    to a mean of 1 over the steps that have any. only: those steps, t, unless they have no noise.
    The steps of a `ForwardLoss` pull equally hard as they are.
    """

    only: frozenset[int]

    def weighs(self, i: int, steps: int) -> bool:
        return steps - i in self.only

    def of(self, sampler: Sampler, forward: bool = False) -> Tensor:
        total = len(sampler)
        weighed = torch.zeros_like(sampler.std)
        for i in range(total):  # on the sampler's device, so that a GPU need not wait
            if self.weighs(i, total):
                weighed[i] = 1
        if forward:
            return weighed
        weighed = weighed * (sampler.std > 0)  # steps without noise have no log-prob
        weights = (sampler.std / sampler.output_scale.abs()) * weighed
        return weights * weighed.sum() / weights.sum()
