"""One optimiser step's gradient from many micro-batches of denoising steps.

Log-probs are computed with the plain, unfused network. At the first optimiser step of a round, the
policy is still the one that sampled. Its log-probs are then log p_theta_old: they are stored, and
no extra pass is needed for them. Because the ratio is 1 by construction there, the check is another
one: the log-probs must be those with which the base was sampled.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfusion.method.losses import ForwardLoss, Steps, Value
from dfusion.method.masks import cell_weights
from dfusion.method.objective import Objective
from dfusion.method.safeguard import loser_scale, with_loser_scaled
from dfusion.method.sampler import LOG_2PI
from dfusion.method.sampling import Policy
from dfusion.models.batching import Fit
from dfusion.training.forward import NoisedBatch, agreement, noised_batch, predicted
from dfusion.training.order import Step
from dfusion.training.pairs import Batch, TrainingPairs
from dfusion.training.policy_cache import PolicyCache
from dfusion.training.step_metrics import Tally
from dfusion.training.transfer import to_device


@dataclass(frozen=True)
class Transitions:
    """Of a batch: log_prob (B, 2), mean (B, 2, C, h, w), and the network's output, (2 B, C, h, w).

    Of noised final latents, log_prob is the loss's agreement, and mean the output.
    """

    log_prob: Tensor
    mean: Tensor
    output: Tensor


def transitions(policy: Policy, network: nn.Module, batch: Batch) -> Transitions:
    """The batch's transitions under `network`."""
    model, sampler = policy.model, policy.sampler
    x, x_next = (b.flatten(0, 1).to(model.device) for b in (batch.x, batch.x_next))
    i = batch.i.to(model.device)[:, None].expand(-1, 2).flatten()
    cond = model.encode([text for text in batch.texts for _ in range(2)])
    output, _ = policy.predict(x, i, cond, network=network)
    mean, std = sampler.transition(x, output, i)
    cells = None if batch.cells is None else batch.cells.repeat_interleave(2, 0)
    log_prob = sampler.log_prob(x_next, mean, std, cells)
    return Transitions(log_prob.unflatten(0, (-1, 2)), mean.unflatten(0, (-1, 2)), output)


@dataclass(frozen=True)
class Whole:
    """A loss of all N steps together.

    loss: (N,), each step's share. slopes: (N, 3, 2), its derivatives with respect to each step's
    log-probs, KL to theta_old and KL to the initial model.
    """

    loss: Tensor
    slopes: Tensor

    def part(self, steps: slice) -> "Whole":
        return Whole(self.loss[steps], self.slopes[steps])


class Updater:
    """Gradients of one round's losses.

    network: the UNet. initial: opens the initial model. fit: the size of micro-batches. zero:
    clears the parameters' gradients. pairs: those that this process trains on in the round.

    fresh: whether the network is still theta_old. loss_scale: a factor on losses in the backward
    pass, so that float16 gradients do not vanish; the caller divides it out. watch(n): called with
    the number of steps to come; returns a function to call with each number of steps done.

    Within an optimiser step, the host never waits for the device: inputs of micro-batches are
    copied without waiting, and results stay on the device.
    """

    def __init__(
        self,
        policy: Policy,
        network: nn.Module,
        data: TrainingPairs,
        objective: Objective,
        initial: Callable[[], AbstractContextManager[nn.Module]],
        fit: Fit,
        zero: Callable[[], None],
        pairs: Sequence[int],
    ) -> None:
        self.policy, self.network, self.data = policy, network, data
        self.objective, self.initial, self.fit, self.zero = objective, initial, fit, zero
        self.fresh, self.loss_scale = True, 1.0
        self.watch: Callable[[int], Callable[[int], None]] = lambda total: lambda count: None
        device, steps = policy.model.device, len(policy.sampler)
        self.old, self.first = (PolicyCache(len(pairs), steps, device) for _ in range(2))
        self._row = {p: n for n, p in enumerate(pairs)}
        self._advantages = to_device(torch.tensor([data.advantages(p) for p in pairs]), device)
        texts = [data.pairs[p].prompt for p in pairs]
        numbers = {text: n for n, text in enumerate(dict.fromkeys(texts))}
        self._prompts = to_device(torch.tensor([numbers[text] for text in texts]), device)
        self._met: set[Step] = set()  # that the initial model has evaluated
        self._drawn: tuple[int, Tensor] | None = None
        # For each micro-batch: its steps, and (B, 2) whether loss and gradient are finite.
        self._sound: list[tuple[Sequence[Step], Tensor]] = []
        policy.model.encode([policy.negative, *texts])

    @torch.no_grad()
    def remember(self, steps: Sequence[Step]) -> None:
        """Compute theta_old's log-probs while the network is still theta_old."""

        def work(chunk: Sequence[Step]) -> None:
            index = self._index(chunk)
            batch = self._read(chunk, index)
            self._keep_old(index, self._evaluate(self.network, batch, index))

        for _ in self.fit.over(steps, work):
            pass

    def backward(self, steps: Sequence[Step]) -> Tally:
        """Store `loss_scale` times the gradient of the sum of the steps' losses in the parameters.

        Starts over with smaller micro-batches if the device runs out of memory.
        """
        return self.fit.retried(self._backward, steps)

    def _backward(self, steps: Sequence[Step]) -> Tally:
        self.zero()
        self._sound = []
        device, total = self.policy.model.device, len(self.policy.sampler)
        tally = Tally.empty(total, device)
        self._weights = to_device(self.objective.weights(self.policy.sampler), device)
        # A process may have no steps.
        whole = self._whole(steps) if steps and self.objective.loss.whole_update else None
        advance, done = self.watch(len(steps)), 0
        for chunk, index in self._chunks(steps):
            part = slice(done, done + len(chunk))
            self._micro_batch(chunk, index, tally, whole and whole.part(part))
            advance(len(chunk))
            done += len(chunk)
        return tally

    def _chunks(self, steps: Sequence[Step]) -> Iterator[tuple[Sequence[Step], Tensor]]:
        """Micro-batches of as many steps as fit, with their index."""
        index, done = self._index(steps), 0
        while done < len(steps):
            chunk = steps[done : done + self.fit.size]
            yield chunk, index[done : done + len(chunk)]
            self.fit.fitted(len(chunk))
            done += len(chunk)

    @torch.no_grad()
    def _whole(self, steps: Sequence[Step]) -> Whole:
        """Evaluate a loss of all steps together, so that the backward pass can go in chunks."""
        rows = []
        for chunk, index in self._chunks(steps):
            batch = self._read(chunk, index)
            self._meet_initial(chunk, index, batch)
            now = self._evaluate(self.network, batch, index)
            if self.fresh:
                self._keep_old(index, now)
            rows.append(torch.stack([now.log_prob, *self._kls(index, now)], 1))
        index = self._index(steps)
        with torch.enable_grad():
            table = torch.cat(rows).requires_grad_()
            log_prob, kl, far = table.unbind(1)
            loss = self.objective(self._steps(index, log_prob, kl), far).loss
            (slopes,) = torch.autograd.grad(loss, table)
        return Whole((loss.detach() / len(steps)).expand(len(steps)), slopes)

    def broken(self) -> str:
        """The first step with NaN or Inf in the last `backward`, in words; empty if none has."""
        total = len(self.policy.sampler)
        for chunk, sound in self._sound:
            for what, good in zip(("loss", "gradient"), sound.T.cpu(), strict=True):
                if not bool(good.all()):
                    step = chunk[int(good.long().argmin())]
                    return f"pair {step.pair}, step t = {total - step.i}: NaN or Inf in the {what}"
        return ""

    def _index(self, steps: Sequence[Step]) -> Tensor:
        """(N, 2) on the device: row among this process's pairs, and i."""
        index = torch.tensor([(self._row[s.pair], s.i) for s in steps], dtype=torch.long)
        return to_device(index.reshape(-1, 2), self.policy.model.device)

    def _read(self, chunk: Sequence[Step], index: Tensor) -> Batch | NoisedBatch:
        """The chunk's batch, on the device."""
        row, i = index.unbind(1)
        if self.objective.forward:
            return noised_batch(self.policy, self.data, chunk, i)
        states = to_device(self.data.states(chunk), self.policy.model.device).float()
        texts = [self.data.pairs[s.pair].prompt for s in chunk]
        cells = self._cells(chunk) if self.objective.masked else None
        return Batch(states[:, :, 0], states[:, :, 1], i, texts, self._advantages[row], cells)

    def _cells(self, chunk: Sequence[Step]) -> Tensor:
        """(B, h, w): the weights of cells in log-probs."""
        size = self.policy.model.latent_shape[1:]
        outside = self.objective.outside_weight
        known = [self.data.mask(step) for step in chunk]
        cells = [
            torch.ones(size) if mask is None else cell_weights(mask[None], outside, size)[0]
            for mask in known
        ]
        return to_device(torch.stack(cells), self.policy.model.device)

    def _evaluate(
        self, network: nn.Module, batch: Batch | NoisedBatch, index: Tensor
    ) -> Transitions:
        """The batch under `network`."""
        if isinstance(batch, Batch):
            return transitions(self.policy, network, batch)
        assert isinstance(self.objective.loss, ForwardLoss)
        output = predicted(self.policy, network, batch)
        both = output.unflatten(0, (-1, 2))
        row, i = index.unbind(1)
        old = None if self.fresh or self.old.mean is None else self.old.mean[row, i]
        found = agreement(self.policy, self.objective.loss, batch, both, old)
        return Transitions(found, both, output)

    def _with_loser_held(
        self, batch: Batch | NoisedBatch, now: Transitions, slopes: Tensor
    ) -> Tensor:
        """(B, 2): log-probs, with the loser's gradient held back."""
        if isinstance(batch, Batch):
            pulls = batch.x_next - now.mean.detach()  # times a factor that both sides share
            pulls = pulls if batch.cells is None else pulls * batch.cells[:, None, None]
        else:
            pulls = batch.aim - now.mean.detach()
        scale = loser_scale(pulls, slopes, self.objective.loser_limit)
        return with_loser_scaled(now.log_prob, scale)

    def _slopes(self, index: Tensor, now: Transitions, kl: Tensor, far: Tensor) -> Tensor:
        """(B, 2): the derivatives of the steps' losses with respect to their log-probs."""
        log_prob = now.log_prob.detach().requires_grad_()
        value = self.objective(self._steps(index, log_prob, kl.detach()), far.detach())
        return torch.autograd.grad(value.loss.sum(), log_prob)[0]

    def _micro_batch(
        self,
        chunk: Sequence[Step],
        index: Tensor,
        tally: Tally,
        whole: Whole | None,
    ) -> None:
        """whole: this chunk's part, for losses of all steps together."""
        batch, i = self._read(chunk, index), index[:, 1]
        self._meet_initial(chunk, index, batch)
        now = self._evaluate(self.network, batch, index)
        if self.fresh:
            self._keep_old(index, now)
            self._add_shifts(chunk, batch, now, tally)
        kl, far = self._kls(index, now)
        log_prob = now.log_prob
        if self.objective.safeguarded:
            slopes = self._slopes(index, now, kl, far) if whole is None else whole.slopes[:, 0]
            log_prob = self._with_loser_held(batch, now, slopes)
        steps = self._steps(index, log_prob, kl)
        now.output.retain_grad()
        if whole is None:
            value = self.objective(steps, far)
            loss, minimised = value.loss.detach(), value.loss
        else:
            loss, value = whole.loss, Value(whole.loss)
            minimised = (whole.slopes * torch.stack([log_prob, kl, far], 1)).sum((1, 2))
        (minimised.sum() * self.loss_scale).backward()
        assert now.output.grad is not None
        sides = now.output.grad.detach().flatten(1).isfinite().all(1).unflatten(0, (-1, 2)).all(1)
        sound = torch.stack([loss.isfinite(), sides], -1)
        self._sound.append((chunk, sound))
        gradient = (
            now.output.grad.flatten(1).norm(dim=1).unflatten(0, (-1, 2)).mean(-1) / self.loss_scale
        )
        tally.add(i, steps, Value(loss, value.clipped), gradient, far, sound)

    def _steps(self, index: Tensor, log_prob: Tensor, kl: Tensor) -> Steps:
        """What the loss sees of the steps that `index` names."""
        row, i = index.unbind(1)
        compared = self.first if self.objective.loss.to_initial else self.old
        return Steps(
            log_prob=log_prob,
            old=compared.log_prob[row, i],
            kl=kl,
            advantage=self._advantages[row],
            weight=self._weights[i],
            i=i,
            pair=row,
            prompt=self._prompts[row],
        )

    def _kls(self, index: Tensor, now: Transitions) -> tuple[Tensor, Tensor]:
        """(B, 2) each: KL to theta_old and to the initial model; zeros where none is needed."""
        row, i = index.unbind(1)
        near = self.old if self.objective.loss.needs_means else None
        far = self.first if self.objective.kl_initial else None
        return self._kl(near, row, i, now), self._kl(far, row, i, now)

    def _keep_old(self, index: Tensor, found: Transitions) -> None:
        mean = found.mean if self.objective.loss.needs_means else None
        self.old.keep(index, found.log_prob, mean)

    @torch.no_grad()
    def _meet_initial(
        self, chunk: Sequence[Step], index: Tensor, batch: Batch | NoisedBatch
    ) -> None:
        """Evaluate the initial model on steps that it has not evaluated yet."""
        if not self.objective.needs_initial or self._met.issuperset(chunk):
            return
        with self.initial() as network:
            found = self._evaluate(network, batch, index)
        mean = found.mean if self.objective.kl_initial else None
        self.first.keep(index, found.log_prob, mean)
        self._met.update(chunk)

    def _kl(self, known: PolicyCache | None, row: Tensor, i: Tensor, now: Transitions) -> Tensor:
        """(B, 2) KL(now || known); zeros without `known`.

        Of noised latents, it is that of predictions with unit variance: half the mean square.
        """
        if known is None:
            return torch.zeros_like(now.log_prob)
        assert known.mean is not None
        mean, before = now.mean.flatten(0, 1), known.mean[row, i].flatten(0, 1)
        std = self.policy.sampler.std[i[:, None].expand(-1, 2).flatten()]
        if self.objective.forward:
            std = torch.ones_like(std)
        return self.policy.sampler.kl(mean, before, std).unflatten(0, (-1, 2))

    def _noise(self, step: Step) -> Tensor:
        """The noise, (C, h, w), in the base's x_{t-1}; kept for the next steps of the pair."""
        if self._drawn is None or self._drawn[0] != step.pair:
            self._drawn = step.pair, self.policy.drawn(self.data.pairs[step.pair].base)[1]
        return self._drawn[1][step.i]

    @torch.no_grad()
    def _add_shifts(
        self, chunk: Sequence[Step], batch: Batch | NoisedBatch, now: Transitions, tally: Tally
    ) -> None:
        """How far fusion moved the targets' means, in units of the step's noise.

        A target's state is (fused mean) + std z with its base's z, which gives the fused mean.
        """
        walked = [self.data.walked_fused(step) for step in chunk]
        if isinstance(batch, NoisedBatch) or not any(walked):
            return
        nothing, device = torch.zeros(self.policy.model.latent_shape), now.mean.device
        drawn = [self._noise(s) if w else nothing for s, w in zip(chunk, walked, strict=True)]
        on_side_0 = torch.tensor([self.data.base_side(step.pair) == 1 for step in chunk])  # targets
        z, counts, first = (
            to_device(t, device) for t in (torch.stack(drawn), torch.tensor(walked), on_side_0)
        )
        std = self.policy.sampler.std[batch.i].reshape(-1, 1, 1, 1)
        both = batch.x_next - now.mean
        moved = torch.where(first.view(-1, 1, 1, 1), both[:, 0], both[:, 1]) / std - z
        tally.add_shift(batch.i, moved.square().flatten(1).mean(1).sqrt(), counts)

    def tensors(self) -> dict[str, Tensor]:
        """The results of theta_old and of the initial model, to be written to a file."""
        return {**self.old.tensors("old"), **self.first.tensors("first")}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue after an optimiser step from its `tensors`. Raises ValueError for a misfit."""
        self.old.restore("old", tensors)
        self.first.restore("first", tensors)
        met = tensors["first.log_prob"].isfinite().all(-1)
        steps = range(len(self.policy.sampler))
        self._met = {Step(p, i) for p, n in self._row.items() for i in steps if met[n, i]}
        self.fresh = False


@torch.no_grad()
def sampling_gap(
    policy: Policy, network: nn.Module, data: TrainingPairs, steps: Sequence[Step]
) -> float:
    """Largest |log-prob now - log-prob when sampled| over the bases of some steps.

    A base was sampled as mean + std z, and its seed reproduces z. Its log-prob was therefore
    -(mean z^2 + log 2 pi) / 2 - log std. Any gap means that the network being trained is not the
    one that sampled: its LoRA, precision, dropout or guidance differs.
    """
    log_prob = transitions(policy, network, data.read(steps)).log_prob
    gaps = []
    for n, step in enumerate(steps):
        _, z = policy.noise([data.pairs[step.pair].base])
        expected = (
            -0.5 * (z[0, step.i].square().mean() + LOG_2PI) - policy.sampler.std[step.i].log()
        )
        side = data.base_side(step.pair)
        gaps.append((log_prob[n, side] - expected).abs())
    return float(torch.stack(gaps).max())
