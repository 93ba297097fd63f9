"""Steps as noise added to final latents, for a `ForwardLoss`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfusion.method.losses import ForwardLoss, Noised
from dfusion.method.noise import FORWARD, generator
from dfusion.method.sampling import Policy
from dfusion.training.order import Step
from dfusion.training.pairs import TrainingPairs
from dfusion.training.transfer import to_device


@dataclass(frozen=True)
class NoisedBatch:
    """x, aim, x0: (B, 2, C, h, w), on the device; see `Noised`. i: (B,) long."""

    x: Tensor
    aim: Tensor
    x0: Tensor
    i: Tensor
    texts: list[str]


def noised_batch(
    policy: Policy, data: TrainingPairs, steps: Sequence[Step], i: Tensor
) -> NoisedBatch:
    """Both sides' final latents with the same noise, drawn from (seed, round, pair, step).

    i: (B,) long, the steps' indices, on the device.
    """
    device, last = policy.model.device, len(policy.sampler) - 1
    ends = data.states([Step(step.pair, last) for step in steps])[:, :, 1]
    x0 = to_device(ends, device).float()
    drawn = [_noise(policy, step) for step in steps]
    n = to_device(torch.stack(drawn), device)[:, None].expand_as(x0)
    both = i[:, None].expand(-1, 2).flatten()
    x, aim = policy.sampler.noised(x0.flatten(0, 1), n.flatten(0, 1), both)
    texts = [data.pairs[step.pair].prompt for step in steps]
    return NoisedBatch(x.view_as(x0), aim.view_as(x0), x0, i, texts)


def _noise(policy: Policy, step: Step) -> Tensor:
    rng = generator(policy.seed, policy.round, step.pair, step.i, FORWARD)
    return torch.randn(policy.model.latent_shape, generator=rng)


def predicted(policy: Policy, network: nn.Module, batch: NoisedBatch) -> Tensor:
    """The network's output, (B, 2, C, h, w), without guidance, as in training."""
    model = policy.model
    i = batch.i[:, None].expand(-1, 2).flatten()
    cond = model.encode([text for text in batch.texts for _ in range(2)])
    timestep = policy.sampler.timesteps[i]
    output, _ = model.predict(batch.x.flatten(0, 1), timestep, cond, None, network=network)
    return output


def agreement(
    policy: Policy, loss: ForwardLoss, batch: NoisedBatch, output: Tensor, old: Tensor | None
) -> Tensor:
    """(B, 2). output: (B, 2, C, h, w). old: theta_old's; None while the network is theta_old."""
    uphill = policy.sampler.output_scale[batch.i].sign().view(-1, 1, 1, 1, 1)
    known = output.detach() if old is None else old
    return loss.agreement(Noised(output, batch.aim, batch.x0, known, uphill))
