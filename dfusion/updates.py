"""One optimiser step from many micro-batches of denoising steps.

Log-probs are taken under the plain, unfused network. In the first inner epoch of a round the policy
is still the one that sampled, so that the log-probs it gives are log p_theta_old: they are kept,
and no pass is spent on computing them. Their ratio is exactly 1 then; what is checked instead is
that they are the log-probs the base was sampled with.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dfusion import losses
from dfusion.ddim import DDIM, LOG_2PI
from dfusion.models import DiffusionModel
from dfusion.sampling import Policy
from dfusion.transitions import Batch, Step, TrainingRound

METHODS = ("dpo", "ddpo", "dpok")


@dataclass(frozen=True)
class Objective:
    """Which loss, with its numbers (Eq. 6, 8, 9)."""

    method: str = "dpo"
    beta: float = 0.1
    form: str = "ratio"
    clip: float | None = 0.1
    advantage_max: float = 5.0
    dpok_alpha: float = 0.99
    dpok_beta: float = 0.01

    @property
    def pairwise(self) -> bool:
        """Whether the loss compares the two sides: then equal sides have no gradient."""
        return self.method == "dpo"

    def __call__(self, log_prob: Tensor, old: Tensor, advantage: Tensor, kl: Tensor) -> losses.Loss:
        """Per step, (B,), summed over both sides; all arguments (B, 2)."""
        if self.method == "dpo":
            (target, base), (old_target, old_base) = log_prob.T, old.T
            return losses.dpo(target, base, old_target, old_base, self.beta, self.form, self.clip)
        sides = []
        clip = self.clip if self.clip is not None else float("inf")
        for s in (0, 1):
            terms = log_prob[:, s], old[:, s], advantage[:, s]
            if self.method == "ddpo":
                sides.append(losses.ddpo(*terms, clip, self.advantage_max))
            else:
                a, b = self.dpok_alpha, self.dpok_beta
                sides.append(losses.dpok(*terms, kl[:, s], clip, self.advantage_max, a, b))
        return losses.Loss(
            sides[0].value + sides[1].value,
            torch.stack([side.ratio for side in sides], -1),
            torch.stack([side.clipped for side in sides], -1),
        )


@dataclass
class Old:
    """What theta_old gave, filled in the first inner epoch; means only where a KL needs them."""

    log_prob: dict[Step, Tensor] = field(default_factory=dict)  # (2,)
    mean: dict[Step, Tensor] = field(default_factory=dict)  # (2, C, h, w)


@dataclass
class Tally:
    """Sums over an update, by step index: for the metrics."""

    steps: int
    loss: float = 0.0
    count: Tensor = field(init=False)
    ratio: Tensor = field(init=False)
    clipped: Tensor = field(init=False)
    gradient: Tensor = field(init=False)
    kl: float = 0.0

    def __post_init__(self) -> None:
        for name in ("count", "ratio", "clipped", "gradient"):
            setattr(self, name, torch.zeros(self.steps))

    def add(self, i: Tensor, loss: losses.Loss, gradient: Tensor, kl: Tensor) -> None:
        """gradient: (B,) norm of the loss's gradient at the network's output."""
        self.loss += float(loss.value.detach().sum())
        self.kl += float(kl.detach().mean(-1).sum())
        for name, values in (
            ("count", torch.ones(len(i))),
            ("ratio", loss.ratio.cpu().mean(-1)),
            ("clipped", loss.clipped.cpu().float().mean(-1)),
            ("gradient", gradient.cpu()),
        ):
            getattr(self, name).index_add_(0, i.cpu(), values)

    def figures(self) -> dict[str, object]:
        """Plain numbers; lists run over steps t = T … 1."""
        count = self.count.clamp(min=1)
        total = max(1.0, float(self.count.sum()))
        return {
            "loss": self.loss / total,
            "kl": self.kl / total,
            "ratio": float(self.ratio.sum()) / total,
            "clip_fraction": (self.clipped / count).tolist(),
            "gradient_share": (self.gradient / self.gradient.sum().clamp(min=1e-12)).tolist(),
        }


def log_probs(
    model: DiffusionModel, ddim: DDIM, network: nn.Module, batch: Batch, guidance: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs (B, 2), means (B, 2, C, h, w) and guided noise (2 B, C, h, w) of a batch."""
    x, x_next = (b.flatten(0, 1).to(model.device) for b in (batch.x, batch.x_next))
    i = batch.i.repeat_interleave(2).to(model.device)
    cond = model.encode([text for text in batch.texts for _ in range(2)])
    eps, _ = model.predict(x, ddim.timesteps[i], cond, guidance, network=network)
    mean, std = ddim.transition(x, eps, i)
    log_prob = ddim.log_prob(x_next, mean, std)
    return log_prob.unflatten(0, (-1, 2)), mean.unflatten(0, (-1, 2)), eps


def backward(
    policy: Policy,
    network: nn.Module,
    data: TrainingRound,
    steps: Sequence[Step],
    objective: Objective,
    old: Old,
    first: bool,
    boost: float,
    batch_size: int,
    sync: Callable[[bool], AbstractContextManager],
    advance: Callable[[int], None],
) -> Tally:
    """Add `boost` times the gradient of the sum of the steps' losses to the parameters.

    boost: keeps gradients of a float16 network from vanishing; the caller divides it out. first:
    theta is theta_old; its log-probs are kept in `old`. sync(last) wraps each backward pass (under
    DDP only the last one exchanges gradients).
    """
    tally = Tally(len(policy.ddim))
    for start in range(0, len(steps), batch_size):
        chunk = steps[start : start + batch_size]
        batch = data.read(chunk)
        with sync(start + batch_size >= len(steps)):
            log_prob, mean, eps = log_probs(
                policy.model, policy.ddim, network, batch, policy.guidance
            )
            if first:
                _remember(old, chunk, log_prob, mean if objective.method == "dpok" else None)
            before = torch.stack([old.log_prob[s] for s in chunk]).to(log_prob.device)
            kl = _kl(policy.ddim, old, chunk, batch, mean)
            loss = objective(log_prob, before, batch.advantages.to(log_prob.device), kl)
            eps.retain_grad()
            (loss.value.sum() * boost).backward()
        assert eps.grad is not None
        gradient = eps.grad.flatten(1).norm(dim=1).unflatten(0, (-1, 2)).mean(-1) / boost
        tally.add(batch.i, loss, gradient, kl)
        advance(len(chunk))
    return tally


def _remember(old: Old, steps: Sequence[Step], log_prob: Tensor, mean: Tensor | None) -> None:
    for n, step in enumerate(steps):
        old.log_prob[step] = log_prob[n].detach()
        if mean is not None:
            old.mean[step] = mean[n].detach().cpu()


def _kl(ddim: DDIM, old: Old, steps: Sequence[Step], batch: Batch, mean: Tensor) -> Tensor:
    """(B, 2) KL(p_theta || p_theta_old); zeros where no means are kept."""
    if not old.mean:
        return torch.zeros(mean.shape[:2], device=mean.device)
    before = torch.stack([old.mean[s] for s in steps]).to(mean.device).flatten(0, 1)
    std = ddim.std[batch.i.repeat_interleave(2).to(ddim.std.device)]
    return ddim.kl(mean.flatten(0, 1), before, std).unflatten(0, (-1, 2))


@torch.no_grad()
def sampling_gap(
    policy: Policy, network: nn.Module, data: TrainingRound, steps: Sequence[Step]
) -> float:
    """Largest |log-prob now - log-prob when sampled| over the bases of some steps.

    A base was sampled as mean + std z with a z that its seed gives again, so that its log-prob was
    -(mean z^2 + log 2 pi) / 2 - log std. Any gap means that the network which trains is not the one
    that sampled: another LoRA, precision, dropout, guidance.
    """
    log_prob, _, _ = log_probs(
        policy.model, policy.ddim, network, data.read(steps), policy.guidance
    )
    gaps = []
    for n, step in enumerate(steps):
        _, z = policy.noise([data.pairs[step.pair].base])
        expected = -0.5 * (z[0, step.i].square().mean() + LOG_2PI) - policy.ddim.std[step.i].log()
        gaps.append((log_prob[n, 1] - expected).abs())
    return float(torch.stack(gaps).max())
