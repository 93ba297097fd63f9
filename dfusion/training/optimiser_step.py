"""One optimiser step: the gradient over all processes is checked, then applied or skipped."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfusion.training.gradients import Updater
from dfusion.training.loss_scale import LossScale
from dfusion.training.order import Update
from dfusion.training.step_metrics import Tally


class NotSoundError(ArithmeticError):
    """A loss or gradient is NaN or infinite, and no loss scale can fix that."""


@dataclass
class Stepper:
    """Makes optimiser steps. All processes call it alike and end with the same weights.

    add_up: returns a tensor's sum over all processes. max_norm: to which gradients are clipped.
    """

    parameters: list[nn.Parameter]
    optimiser: torch.optim.Optimizer
    scale: LossScale
    max_norm: float
    processes: int
    add_up: Callable[[Tensor], Tensor]
    say: Callable[[str], None]

    def step(self, updater: Updater, update: Update) -> tuple[float, Tally]:
        """Make a step; returns the gradient's norm and the tally. At norm 0, no weight changes.

        The host waits for the device once. If a float16 gradient is not finite although the losses
        are, it is computed again with a lower loss scale. Raises NotSoundError.
        """
        while True:
            updater.loss_scale = self.scale.value
            tally = updater.backward(update.steps)
            norm, tally = self._over_processes(tally, update.pairs * update.fraction)
            bad_loss = bool(tally.of("bad_loss").any())
            bad_gradient = bool(tally.of("bad_gradient").any())
            if math.isfinite(norm) and not bad_loss and not bad_gradient:
                break
            if bad_loss or not self.scale.lower():
                broken = updater.broken()
                raise NotSoundError(f", {broken}" if broken else f": the gradient's norm is {norm}")
            self.say(f"  a gradient overflowed float16; again with loss scale {self.scale.value:g}")
        self.scale.good()
        updater.fresh = False
        if norm > 0:
            self.optimiser.step()
        return norm, tally

    def _over_processes(self, tally: Tally, pairs: float) -> tuple[float, Tally]:
        """Average the gradient over `pairs` pairs and all their steps, and clip it.

        pairs: counted by the fraction of their steps that is drawn. Returns the norm before
        clipping, and the tally of all processes.
        """
        sums = tally.sums
        if self.processes > 1:
            self._exchange([*map(_gradient, self.parameters), sums])
        factor = 1 / (pairs * sums.shape[1]) / self.scale.value
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        facts = torch.cat([norm.reshape(1).to(sums), sums.flatten()]).cpu()  # the only wait
        return float(facts[0]), Tally(facts[1:].view(sums.shape))

    def _exchange(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in one message."""
        flat = self.add_up(torch.cat([t.flatten() for t in tensors]))
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient; zeros where this process had no step."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
