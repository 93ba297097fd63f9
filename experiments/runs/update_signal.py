"""Why consistent pairs might teach more: signal and noise of a round's update, before any training.

    python -m experiments.runs.update_signal --template 1 --prompts 12 --images 32

At theta = theta_old the gradient of Eq. 6 is, up to a factor, the mean over pairs of

    score(preferred) - score(base),   score(x) = sum over t of grad log p_theta(x_{t-1} | x_t)

and that of DDPO (Eq. 8) weights both scores by their advantages. So the score vectors of a round's
images tell what any choice of pairs would teach. For n pairs, naive and fused, of the same images:

self      expected cosine between the update of n pairs and the update of infinitely many
gain      cosine between the update of n pairs and the gradient of the share of right images, which
          independent samples and the judge give (REINFORCE): what a first step gains in truth
accuracy  share of pairs not trained on whose preferred image becomes more likely than its base

Results are in results/testbed/update_signal.json.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dfusion.errors import ends_in_one_line
from dfusion.method.advantages import normalised, statistics
from dfusion.method.sampling import Policy
from dfusion.models.trainable import tune
from dfusion.progress import Progress
from dfusion.rounds.session import Session, open_session
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Round
from dfusion.storage.files import read_tensors, write_json
from dfusion.training.objective import objective_of
from experiments.measures.measure import judged
from experiments.runs.alignment import arguments, settings_of
from testbed.models.judge import Judge

OUT = Path(__file__).parent.parent / "results" / "testbed" / "update_signal.json"
PAIRS = (8, 16, 32, 64, 128, 256)
DRAWS = 400


def score_vector(
    policy: Policy, text: str, latents: Tensor, steps: Tensor, parameters: Sequence[nn.Parameter]
) -> Tensor:
    """(D,) gradient of a trajectory's summed log-probs. latents: (T+1, C, h, w), steps: (S,)."""
    sampler = policy.sampler
    cond = policy.model.encode([text] * len(steps))
    x, x_next = latents[steps].float(), latents[steps + 1].float()
    output, _ = policy.predict(x, steps, cond)
    mean, std = sampler.transition(x, output, steps)
    gradients = torch.autograd.grad(sampler.log_prob(x_next, mean, std).sum(), parameters)
    return torch.cat([g.flatten() for g in gradients])


def policy_gradient(scores: Tensor, right: Tensor, groups: Sequence[str]) -> Tensor:
    """(N, D) one row an image, whose mean is the gradient of the share of right images.

    The baseline of an image is the mean of the others of its prompt. right: (N,) 0 or 1.
    """
    advantage = torch.empty(len(right))
    for group in set(groups):
        rows = torch.tensor([g == group for g in groups])
        own, n = right[rows].float(), int(rows.sum())
        advantage[rows] = (own - own.mean()) * n / (n - 1)
    return advantage[:, None] * scores


def signal_and_noise(gradients: Tensor) -> tuple[float, float]:
    """Unbiased |mean|^2 and trace of the covariance of independent rows (N, D)."""
    n = len(gradients)
    total = gradients.sum(0).square().sum().item()
    own = gradients.square().sum().item()
    signal = (total - own) / (n * (n - 1))
    return signal, own / n - signal


def expected_cosine(gradients: Tensor, n: int) -> float:
    """Between the mean of n rows and the mean of all that there could be; 0 without a signal."""
    signal, noise = signal_and_noise(gradients)
    return float(np.sqrt(signal / (signal + noise / n))) if signal > 0 else 0.0


@dataclass(frozen=True)
class Kind:
    """Gradients of one kind of pairs (P, D), and what they are held against."""

    pairs: Tensor
    truth: Tensor  # (N, D) rows of policy_gradient

    def gains(self, n: int, rng: np.random.Generator) -> Iterator[float]:
        """Cosines of updates of n pairs with the true gradient, of which rows are drawn anew.

        The true gradient's length is its unbiased estimate, so that noise in it does not lower it.
        """
        length = signal_and_noise(self.truth)[0] ** 0.5
        products = self.pairs @ self.truth.T  # (P, N)
        gram = self.pairs @ self.pairs.T
        for _ in range(DRAWS):
            chosen = rng.permutation(len(self.pairs))[:n]
            truth = rng.integers(len(self.truth), size=len(self.truth))
            norm = gram[chosen][:, chosen].mean().clamp(min=1e-30).sqrt()
            yield float(products[chosen][:, truth].mean() / norm / length)

    def accuracies(self, n: int, rng: np.random.Generator) -> Iterator[float]:
        """Shares of the other pairs that an update of n pairs would order rightly."""
        gram = self.pairs @ self.pairs.T
        for _ in range(DRAWS):
            order = rng.permutation(len(self.pairs))
            chosen, others = order[:n], order[n:]
            yield float((gram[others][:, chosen].sum(1) > 0).float().mean())

    def figures(self, n: int, rng: np.random.Generator) -> dict[str, object]:
        """gain: mean and 95 % interval; None where too few samples show no true gradient."""
        kept: dict[str, object] = {"self": round(expected_cosine(self.pairs, n), 4), "gain": None}
        if signal_and_noise(self.truth)[0] > 0:
            gains = np.fromiter(self.gains(n, rng), float)
            spread = gains.mean(), *np.quantile(gains, (0.025, 0.975))
            kept["gain"] = [round(float(value), 4) for value in spread]
        if n < len(self.pairs):
            kept["accuracy"] = round(float(np.mean([*self.accuracies(n, rng)])), 4)
        return kept


def before_training(session: Session) -> tuple[list[nn.Parameter], Tensor]:
    """A new LoRA's second matrices, and the indices of the steps that are trained on.

    While the second matrices are zero, the first ones have no gradient.
    """
    settings = session.settings
    torch.manual_seed(settings.seed)
    tuning = tune(session.model, settings.train, settings.seed, keep_initial=False)
    weighs, total = objective_of(settings.train).step_weights.weighs, len(session.sampler)
    steps = torch.tensor([i for i in range(total) if weighs(i, total)])
    return [p for p in tuning.parameters if not p.any()], steps


class Scores:
    """Score vectors of stored trajectories."""

    def __init__(self, session: Session) -> None:
        self.parameters, self.steps = before_training(session)

    def of(self, policy: Policy, texts: Sequence[str], paths: Sequence[Path], what: str) -> Tensor:
        """(N, D), of LoRA's second matrices."""
        rows, progress = [], Progress(what, len(paths))
        for text, path in zip(texts, paths, strict=True):
            latents = read_tensors(path)["latents"]
            rows.append(score_vector(policy, text, latents, self.steps, self.parameters))
            progress.advance()
        return torch.stack(rows)


def advantages(round_: Round, adoption: Sequence[dict[str, float]]) -> dict[str, Tensor]:
    """(P,) each: normalised rewards of bases, references and targets, before DDPO clamps them."""
    pairs, stats = round_.pairs() or (), statistics(round_.scores_by_text())
    return {
        side: torch.tensor(
            [normalised(r[side], *stats[p.prompt]) for p, r in zip(pairs, adoption, strict=True)]
        )
        for side in ("base", "reference", "target")
    }


def measure(settings: Settings, judge: Judge) -> dict[str, object]:
    """Figures of one template: pairs of round 0, the true gradient of another round's samples."""
    session = open_session(settings)
    session.runner.run(0, session.policy(0))
    session.runner.prepare(1, session.policy(1))
    paired, other = (session.experiment.round(k) for k in (0, 1))
    prompts = [prompt.text for prompt in paired.sample_prompts()]
    pairs, adoption = paired.pairs() or (), paired.adoption() or []
    scores = Scores(session)

    def trajectories(round_: Round, k: int) -> Tensor:
        paths = [round_.trajectory(i) for i in range(len(prompts))]
        return scores.of(session.policy(k), prompts, paths, f"gradients of round {k}'s samples")

    samples, others = trajectories(paired, 0), trajectories(other, 1)
    targets = scores.of(
        session.policy(0),
        [pair.prompt for pair in pairs],
        [paired.target(p) for p in range(len(pairs))],
        "gradients of targets",
    )
    truth = policy_gradient(others, judged(other, "images", prompts, judge), prompts)
    base, reference = (samples[[getattr(p, s) for p in pairs]] for s in ("base", "reference"))
    adopted = torch.tensor([bool(row["adopted"]) for row in adoption])
    gain = advantages(paired, adoption)
    kinds = {
        "naive": (reference, gain["reference"]),
        "dfusion": (
            torch.where(adopted[:, None], targets, reference),
            torch.where(adopted, gain["target"], gain["reference"]),
        ),
        "all targets": (targets, gain["target"]),
    }
    updates = {
        "dpo": {name: other - base for name, (other, _) in kinds.items()},
        "ddpo": {
            name: weight[:, None] * other + gain["base"][:, None] * base
            for name, (other, weight) in kinds.items()
        },
    }
    rng = np.random.default_rng(settings.seed)

    def figures(rows: Tensor) -> dict[str, object]:
        return {str(n): Kind(rows, truth).figures(n, rng) for n in PAIRS if n <= len(pairs)}

    return {
        "images": len(prompts),
        "pairs": len(pairs),
        "adopted": round(adopted.float().mean().item(), 4),
        "true gradient known to a cosine of": round(expected_cosine(truth, len(truth)), 4),
        "losses": {
            loss: {name: figures(rows) for name, rows in of.items()} for loss, of in updates.items()
        },
    }


@ends_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--template", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--images", type=int, default=32, help="of each prompt, in either round")
    parser.add_argument("--set", action="append", default=[], metavar="mask.merge=or")
    parser.add_argument("--name", default="preset", help="what the figures are filed under")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--precision", default="no", choices=("no", "bf16"))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    given = ("template", "prompts", "images", "seed", "precision")
    flags = [f"--{key}={getattr(args, key)}" for key in given]
    name = f"signal_{args.name}_t{args.template}_s{args.seed}"
    settings = settings_of(arguments([*flags, f"--name={name}", *(f"--set={s}" for s in args.set)]))
    figures = measure(settings, Judge.load())
    saved = json.loads(args.out.read_text()) if args.out.exists() else {}
    saved[f"{args.name}_t{args.template}_s{args.seed}"] = {"set": args.set, **figures}
    write_json(args.out, saved)
    print(json.dumps(figures, indent=1))
    print(f"Figures are in {args.out}")


if __name__ == "__main__":
    main()
