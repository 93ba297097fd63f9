"""One optimiser step's gradient from many micro-batches of denoising steps.

Log-probs are taken under the plain, unfused network. At the first optimiser step of a round the
policy is still the one that sampled, so that the log-probs it gives are log p_theta_old: they are
kept, and no pass is spent on computing them. Their ratio is exactly 1 then; what is checked instead
is that they are the log-probs the base was sampled with.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dfusion.ddim import LOG_2PI
from dfusion.objective import Objective
from dfusion.sampling import Policy
from dfusion.tally import Tally
from dfusion.transitions import Batch, Step, TrainingRound


@dataclass
class Known:
    """What a fixed policy (theta_old, or the initial model) gave for steps, as it is met.

    log_prob: (2,) a step. mean: (2, C, h, w) a step, on the CPU, only where a KL needs it.
    """

    log_prob: dict[Step, Tensor] = field(default_factory=dict)
    mean: dict[Step, Tensor] = field(default_factory=dict)

    def keep(self, steps: Sequence[Step], log_prob: Tensor, mean: Tensor | None) -> None:
        for n, step in enumerate(steps):
            self.log_prob[step] = log_prob[n].detach().cpu()
            if mean is not None:
                self.mean[step] = mean[n].detach().cpu()

    def log_probs(self, steps: Sequence[Step], device: torch.device) -> Tensor:
        """(B, 2)."""
        return torch.stack([self.log_prob[s] for s in steps]).to(device)

    def means(self, steps: Sequence[Step], device: torch.device) -> Tensor:
        """(B, 2, C, h, w)."""
        return torch.stack([self.mean[s] for s in steps]).to(device)


@dataclass(frozen=True)
class Transitions:
    """log_prob (B, 2), mean (B, 2, C, h, w) and guided noise eps (2 B, C, h, w) of a batch."""

    log_prob: Tensor
    mean: Tensor
    eps: Tensor


def transitions(policy: Policy, network: nn.Module, batch: Batch) -> Transitions:
    """The batch's transitions under `network`."""
    model, ddim = policy.model, policy.ddim
    x, x_next = (b.flatten(0, 1).to(model.device) for b in (batch.x, batch.x_next))
    i = batch.i.repeat_interleave(2).to(model.device)
    cond = model.encode([text for text in batch.texts for _ in range(2)])
    eps, _ = model.predict(x, ddim.timesteps[i], cond, policy.guidance, network=network)
    mean, std = ddim.transition(x, eps, i)
    log_prob = ddim.log_prob(x_next, mean, std)
    return Transitions(log_prob.unflatten(0, (-1, 2)), mean.unflatten(0, (-1, 2)), eps)


@dataclass
class Updater:
    """Gradients of one round's losses.

    network: the UNet, wrapped where processes share the work. initial: opens the initial model.
    boost: what losses are multiplied by on the way back, so that float16 gradients do not vanish;
    the caller divides it out. sync(last): wraps each backward pass (under DDP only the last one
    exchanges gradients). advance(n): told of n more steps done.
    """

    policy: Policy
    network: nn.Module
    data: TrainingRound
    objective: Objective
    initial: Callable[[], AbstractContextManager[nn.Module]]
    batch_size: int
    boost: float
    sync: Callable[[bool], AbstractContextManager]
    advance: Callable[[int], None]
    old: Known = field(default_factory=Known)
    first: Known = field(default_factory=Known)  # the initial model's
    _drawn: tuple[int, Tensor] | None = None
    # Of each micro-batch: its steps, and (B,) whether loss and gradient at the output are finite.
    _sound: list[tuple[Sequence[Step], Tensor, Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def remember(self, steps: Sequence[Step]) -> None:
        """Compute theta_old's log-probs while the network is still theta_old."""
        for chunk in self._chunks(steps):
            found = transitions(self.policy, self.network, self.data.read(chunk))
            self._keep_old(chunk, found)

    def backward(self, steps: Sequence[Step]) -> Tally:
        """Add `boost` times the gradient of the sum of the steps' losses to the parameters.

        Steps that `old` does not know are met for the first time: the network is theta_old.
        """
        self._sound = []
        tally = Tally(len(self.policy.ddim))
        chunks = self._chunks(steps)
        for n, chunk in enumerate(chunks, 1):
            self._micro_batch(chunk, tally, last=n == len(chunks))
            self.advance(len(chunk))
        return tally

    def broken(self) -> str:
        """The first step of the last `backward` with NaN or Inf, in words; empty without one.

        Asked once an optimiser step, so that no micro-batch waits for the device.
        """
        total = len(self.policy.ddim)
        for chunk, loss, gradient in self._sound:
            for what, good in (("loss", loss), ("gradient", gradient)):
                if not bool(good.all()):
                    step = chunk[int(good.long().argmin())]
                    return f"pair {step.pair}, step t = {total - step.i}: NaN or Inf in the {what}"
        return ""

    def _micro_batch(self, chunk: Sequence[Step], tally: Tally, last: bool) -> None:
        batch = self.data.read(chunk)
        initial = self._initial(chunk, batch)
        with self.sync(last):
            now = transitions(self.policy, self.network, batch)
            device = now.log_prob.device
            if chunk[0] not in self.old.log_prob:
                self._keep_old(chunk, now)
                self._add_shifts(chunk, batch, now, tally)
            compared = initial if initial and self.objective.ratio_to_initial else self.old
            old = compared.log_probs(chunk, device)
            kl = self._kl(self.old if self.objective.needs_means else None, chunk, batch, now)
            far = self._kl(initial if self.objective.kl_initial else None, chunk, batch, now)
            loss = self.objective(now.log_prob, old, batch.advantages.to(device), kl, far)
            weight = self.objective.weight(batch.i.to(device))
            now.eps.retain_grad()
            ((loss.value * weight).sum() * self.boost).backward()
        assert now.eps.grad is not None
        sides = now.eps.grad.detach().flatten(1).isfinite().all(1).unflatten(0, (-1, 2)).all(1)
        self._sound.append((chunk, loss.value.detach().isfinite(), sides))
        gradient = now.eps.grad.flatten(1).norm(dim=1).unflatten(0, (-1, 2)).mean(-1) / self.boost
        tally.add(batch.i, loss, weight, gradient, kl, far)

    def _chunks(self, steps: Sequence[Step]) -> list[Sequence[Step]]:
        """Micro-batches; none mixes steps that `old` knows with others."""
        return [steps[i : i + self.batch_size] for i in range(0, len(steps), self.batch_size)]

    def _keep_old(self, chunk: Sequence[Step], found: Transitions) -> None:
        mean = found.mean if self.objective.needs_means else None
        self.old.keep(chunk, found.log_prob, mean)

    @torch.no_grad()
    def _initial(self, chunk: Sequence[Step], batch: Batch) -> Known | None:
        """What the initial model gives, computed when the steps are first met."""
        if not self.objective.needs_initial:
            return None
        if any(step not in self.first.log_prob for step in chunk):
            with self.initial() as network:
                found = transitions(self.policy, network, batch)
            mean = found.mean if self.objective.kl_initial else None
            self.first.keep(chunk, found.log_prob, mean)
        return self.first

    def _kl(
        self, known: Known | None, chunk: Sequence[Step], batch: Batch, now: Transitions
    ) -> Tensor:
        """(B, 2) KL(now || known); zeros without `known`."""
        if known is None:
            return torch.zeros_like(now.log_prob)
        ddim = self.policy.ddim
        mean = now.mean.flatten(0, 1)
        before = known.means(chunk, mean.device).flatten(0, 1)
        std = ddim.std[batch.i.repeat_interleave(2).to(ddim.std.device)]
        return ddim.kl(mean, before, std).unflatten(0, (-1, 2))

    def _noise(self, p: int) -> Tensor:
        """(T, C, h, w) step noises of pair p; those of the last pair are kept, as steps come so."""
        if self._drawn is None or self._drawn[0] != p:
            self._drawn = p, self.policy.noise([self.data.pairs[p].base])[1][0]
        return self._drawn[1]

    @torch.no_grad()
    def _add_shifts(
        self, chunk: Sequence[Step], batch: Batch, now: Transitions, tally: Tally
    ) -> None:
        """How far fusion moved the targets' means, in units of the step's noise.

        A target's state is (fused mean) + std z with its base's z, so that the fused mean is known.
        """
        rows = [n for n, s in enumerate(chunk) if self.data.walked_fused(s)]
        if not rows:
            return
        z = torch.stack([self._noise(chunk[n].pair)[chunk[n].i] for n in rows])
        i = batch.i[rows]
        std = self.policy.ddim.std[i.to(z.device)].reshape(-1, 1, 1, 1)
        moved = (batch.x_next[rows, 0].to(z.device) - now.mean[rows, 0]) / std - z
        tally.add_shift(i, moved.square().flatten(1).mean(1).sqrt())


@torch.no_grad()
def sampling_gap(
    policy: Policy, network: nn.Module, data: TrainingRound, steps: Sequence[Step]
) -> float:
    """Largest |log-prob now - log-prob when sampled| over the bases of some steps.

    A base was sampled as mean + std z with a z that its seed gives again, so that its log-prob was
    -(mean z^2 + log 2 pi) / 2 - log std. Any gap means that the network which trains is not the one
    that sampled: another LoRA, precision, dropout, guidance.
    """
    log_prob = transitions(policy, network, data.read(steps)).log_prob
    gaps = []
    for n, step in enumerate(steps):
        _, z = policy.noise([data.pairs[step.pair].base])
        expected = -0.5 * (z[0, step.i].square().mean() + LOG_2PI) - policy.ddim.std[step.i].log()
        gaps.append((log_prob[n, 1] - expected).abs())
    return float(torch.stack(gaps).max())
