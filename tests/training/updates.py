"""Gradients of one update on the tiny model."""

from typing import Any

import torch
from torch import Tensor

from dfusion.models.batching import Fit
from dfusion.training.order import Step
from dfusion.training.step_metrics import Tally
from dfusion.training.trainer import Trainer


def stir(trainer: Trainer) -> None:
    rng = torch.Generator().manual_seed(4)
    for parameter in trainer.tuning.parameters:
        parameter.data.copy_(torch.randn(parameter.shape, generator=rng) * 0.05)


def gradients(trainer: Trainer, **how: Any) -> tuple[list[Tensor], Tally]:
    """Gradients of one update over all steps; theta_old is `moved` away from theta if asked."""
    options = {"batch_size": 8, "objective": trainer.objective, "moved": False, "every": False}
    options |= how
    policy, data = trainer.session.policy(0), trainer.data(0)
    steps = [
        Step(p, i)
        for p in range(len(data.pairs))
        for i in range(0 if options["every"] else data.first_step(p), 4)
    ]
    updater = trainer.updater(policy, data)
    updater.objective = options["objective"]
    updater.fit = Fit("train.batch_size", options["batch_size"], torch.device("cpu"))
    if options["moved"]:
        updater.remember(steps)
        updater.fresh = False
        with torch.no_grad():
            for parameter in trainer.tuning.parameters:
                parameter.mul_(1.3)
    trainer.optimiser.zero_grad()
    tally = updater.backward(steps)
    count = len(data.pairs) * 4
    found = [p.grad / count for p in trainer.tuning.parameters if p.grad is not None]
    assert len(found) == len(trainer.tuning.parameters)
    stir(trainer)
    return found, tally


def close(a: list[Tensor], b: list[Tensor]) -> bool:
    size = max(g.abs().max() for g in b)
    return all(torch.allclose(x / size, y / size, atol=1e-4) for x, y in zip(a, b, strict=True))
