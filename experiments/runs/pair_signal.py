"""How much of what is right an update of n pairs teaches, with Diffusion-DPO's loss.

    python -m experiments.runs.pair_signal [--prompts 12 --images 24 --seed 1]

At theta = theta_old the gradient of Diffusion-DPO's loss is, up to a factor, the mean over pairs of

    grad [agreement(preferred) - agreement(base)]

summed over steps, where both images of a pair have the same noise. It is taken for naive pairs and
for D-Fusion's, of the same samples; and for true pairs of another round, in which the judge calls
one image right and the other wrong. For updates of n pairs of each kind:

self    expected cosine with the update of infinitely many pairs of its kind
truth   cosine with the update of infinitely many true pairs
orders  share of true pairs whose right image gains more agreement than the wrong one

What pairs share without regard to the prompt, such as a mark of fusion, raises `self`, but not
`truth` and `orders`. Intervals (95 %) of figures, and of leads over naive
pairs, are the jackknife's over prompts. Results are in results/testbed/pair_signal.json.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfusion.errors import ends_in_one_line
from dfusion.method.noise import FORWARD, generator
from dfusion.method.sampling import Policy
from dfusion.progress import Progress
from dfusion.rounds.session import Session, open_session
from dfusion.settings.schema import Settings
from dfusion.storage.experiment import Round
from dfusion.storage.files import read_tensors, write_json
from experiments.measures.measure import judged
from experiments.runs.alignment import RESULTS, arguments, settings_of
from experiments.runs.update_signal import (
    DRAWS,
    before_training,
    expected_cosine,
    signal_and_noise,
)
from testbed.models.judge import Judge

OUT = RESULTS / "testbed" / "pair_signal.json"
COUNTS = (8, 16, 32, 64)  # pairs of an update
Spread = tuple[float, float]  # a figure, and half its 95 % interval
RECIPES = {"both items": "diffusion_dpo_all", "the prop": "diffusion_dpo_prop_all"}


@dataclass(frozen=True)
class Sides:
    """Final latents (C, h, w) of a pair. number: seeds its noise, alike for all kinds of pairs."""

    text: str
    preferred: Tensor
    base: Tensor
    number: int


def pair_gradient(
    policy: Policy, sides: Sides, steps: Tensor, parameters: Sequence[nn.Parameter]
) -> Tensor:
    """(D,) gradient of how much more the preferred image agrees than the base. steps: (S,)."""
    model, sampler = policy.model, policy.sampler
    rngs = [generator(policy.seed, policy.round, sides.number, int(i), FORWARD) for i in steps]
    noise = torch.stack([torch.randn(model.latent_shape, generator=rng) for rng in rngs])
    x0 = torch.stack([sides.preferred, sides.base])[:, None].expand(-1, len(steps), -1, -1, -1)
    x, aim = sampler.noised(x0.flatten(0, 1), noise.repeat(2, 1, 1, 1), steps.repeat(2))
    cond = model.encode([sides.text] * len(x))
    output, _ = model.predict(x, sampler.timesteps[steps.repeat(2)], cond, None)
    preferred, base = -(output - aim).square().flatten(1).mean(1).view(2, -1)
    gradients = torch.autograd.grad((preferred - base).sum(), parameters)
    return torch.cat([g.flatten() for g in gradients])


def true_pairs(round_: Round, prompts: Sequence[str], judge: Judge) -> list[Sides]:
    """Right and wrong samples of the same prompt, each used once."""
    right = judged(round_, "images", prompts, judge)
    found: list[Sides] = []
    for text in dict.fromkeys(prompts):
        own = [i for i, prompt in enumerate(prompts) if prompt == text]
        good, bad = ([i for i in own if bool(right[i]) == wanted] for wanted in (True, False))
        for i, j in zip(good, bad, strict=False):
            one, other = _end(round_.trajectory(i)), _end(round_.trajectory(j))
            found.append(Sides(text, one, other, len(found)))
    return found


def round_pairs(round_: Round, targets: bool) -> list[Sides]:
    """A round's pairs: targets against bases, or references against bases."""
    found = []
    for p, pair in enumerate(round_.pairs() or ()):
        better = round_.target(p) if targets else round_.trajectory(pair.reference)
        found.append(Sides(pair.prompt, _end(better), _end(round_.trajectory(pair.base)), p))
    return found


def _end(path: Path) -> Tensor:
    return read_tensors(path)["latents"][-1].float()


@dataclass(frozen=True)
class Rows:
    """Gradients of pairs (P, D), and the prompt of each."""

    gradients: Tensor
    texts: Sequence[str]

    def without(self, text: str | None) -> Tensor:
        """The gradients of other prompts' pairs, or all."""
        return self.gradients[torch.tensor([own != text for own in self.texts])]


class Gradients:
    """Gradients of pairs under one model that has not been trained."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.parameters, self.steps = before_training(session)

    def of(self, pairs: Sequence[Sides], round_: int, what: str) -> Rows:
        """Of LoRA's second matrices."""
        policy, rows, progress = self.session.policy(round_), [], Progress(what, len(pairs))
        for sides in pairs:
            rows.append(pair_gradient(policy, sides, self.steps, self.parameters))
            progress.advance()
        return Rows(torch.stack(rows), [sides.text for sides in pairs])


def truth_cosine(pairs: Tensor, truth: Tensor, n: int) -> float:
    """Expected cosine of n of the pairs (P, D) with the mean of all true pairs there could be.

    truth: (N, D). Lengths are unbiased estimates, so that noise in the mean of the true pairs does
    not lower the cosine. NaN where the true pairs have no signal.
    """
    signal, noise = signal_and_noise(pairs)
    length, _ = signal_and_noise(truth)
    product = float(pairs.mean(0) @ truth.mean(0))
    return product / (max(signal + noise / n, 0) * length) ** 0.5 if length > 0 else math.nan


def orders(pairs: Tensor, truth: Tensor, n: int, seed: int = 0) -> float:
    """Mean share of true pairs (N, D) that an update of n of the pairs (P, D) orders rightly."""
    rng, products = np.random.default_rng(seed), truth @ pairs.T
    chosen = (rng.permutation(len(pairs))[:n] for _ in range(DRAWS))
    return float(np.mean([float((products[:, c].sum(1) > 0).float().mean()) for c in chosen]))


MEASURES: dict[str, Callable[[Tensor, Tensor, int], float]] = {
    "self": lambda pairs, truth, n: expected_cosine(pairs, n),
    "truth": truth_cosine,
    "orders": orders,
}


def spread(values: np.ndarray) -> Spread:
    """A figure of all prompts, first, with its jackknife from those without one prompt each."""
    left = values[1:]
    error = ((len(left) - 1) * left.var()) ** 0.5
    return round(float(values[0]), 4), round(1.96 * float(error), 4)


def figures(kinds: dict[str, Rows], truth: Rows) -> dict[str, dict[str, dict[str, Spread]]]:
    """Of each kind and n: the figures, and the leads over naive pairs.

    n is never more than the pairs there are without any one prompt.
    """
    cuts = (None, *dict.fromkeys(truth.texts))
    fewest = min(len(rows.without(c)) for rows in kinds.values() for c in cuts)
    counts = [n for n in COUNTS if n <= fewest]
    found: dict[str, dict[str, dict[str, Spread]]] = {name: {} for name in kinds}
    progress = Progress("jackknife", len(counts) * len(MEASURES))
    for n in counts:
        for row in found.values():
            row[str(n)] = {}
        for key, measure in MEASURES.items():
            values = {
                name: np.array([measure(r.without(c), truth.without(c), n) for c in cuts])
                for name, r in kinds.items()
            }
            for name, own in values.items():
                found[name][str(n)][key] = spread(own)
                found[name][str(n)][f"lead, {key}"] = spread(own - values["naive"])
            progress.advance()
    return found


def measure(every: dict[str, Settings], judge: Judge) -> dict[str, Any]:
    """Figures; every: settings that differ in the items of their masks only."""
    sessions = {name: open_session(settings) for name, settings in every.items()}
    for session in sessions.values():
        session.runner.run(0, session.policy(0))
    first = next(iter(sessions.values()))
    first.runner.prepare(1, first.policy(1))
    other = first.experiment.round(1)
    prompts = [prompt.text for prompt in other.sample_prompts()]
    gradients = Gradients(first)
    truth = gradients.of(true_pairs(other, prompts, judge), 1, "gradients of true pairs")
    naive = round_pairs(first.experiment.round(0), targets=False)
    kinds = {"naive": gradients.of(naive, 0, "gradients of naive pairs")}
    for name, session in sessions.items():
        pairs = round_pairs(session.experiment.round(0), targets=True)
        kinds[f"fused, {name}"] = gradients.of(pairs, 0, f"gradients of pairs fused in {name}")
    return {
        "pairs": len(naive),
        "true pairs": len(truth.texts),
        "true pairs, self": {str(n): round(expected_cosine(truth.gradients, n), 4) for n in COUNTS},
        "kinds": figures(kinds, truth),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """A line for each kind and n."""
    said = []
    for kind, counts in found["kinds"].items():
        for n, row in counts.items():
            cells = [f"{key} {mean:+.2f} ± {half:.2f}" for key, (mean, half) in row.items()]
            said.append(f"{kind:18} n = {n:3} {'  '.join(cells)}")
    return said


@ends_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--images", type=int, default=24, help="of each prompt, in either round")
    parser.add_argument("--precision", default="no", choices=("no", "bf16"))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    given = ("prompts", "images", "seed", "precision")
    flags = [f"--{key}={getattr(args, key)}" for key in given]
    every = {}
    for name, recipe in RECIPES.items():
        named = f"--name=pair_signal_{recipe}_{args.images}_s{args.seed}"
        every[name] = settings_of(arguments([*flags, f"--recipe={recipe}", named]))
    found = measure(every, Judge.load())
    write_json(args.out, {**{key: getattr(args, key) for key in given}, **found})
    print("\n".join([*lines(found), f"Figures are in {args.out}"]))


if __name__ == "__main__":
    main()
