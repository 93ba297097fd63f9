"""How much of what is right an update of n pairs teaches, with Diffusion-DPO's loss.

    python -m experiments.runs.pair_signal --seed 1 [--prompts 12 --images 8]

At theta = theta_old the gradient of Diffusion-DPO's loss is, up to a factor, the mean over pairs of

    grad [agreement(preferred) - agreement(base)]

summed over steps, where both images of a pair have the same noise. It is taken for naive pairs and
for D-Fusion's, of the same samples; and for true pairs of another round, in which the judge calls
one image right and the other wrong. For updates of n pairs of each kind:

self    expected cosine with the update of infinitely many pairs of its kind
truth   cosine with the update of infinitely many true pairs
orders  share of true pairs whose right image gains more agreement than the wrong one

`self` may be high because pairs share something that has nothing to do with the prompt, such as a
mark of fusion; `truth` and `orders` may not. Results are in results/testbed/pair_signal.json, one
entry a seed; a table over seeds is printed.
"""

import argparse
import json
from collections.abc import Sequence
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
from experiments.measures.intervals import over_seeds
from experiments.runs.alignment import RESULTS, arguments, settings_of
from experiments.runs.update_signal import DRAWS, Kind, before_training, expected_cosine, judged
from testbed.models.judge import Judge

OUT = RESULTS / "testbed" / "pair_signal.json"
COUNTS = (8, 16, 32)  # pairs of an update
RECIPES = {"both items": "diffusion_dpo_all", "the prop": "diffusion_dpo_prop_all"}


@dataclass(frozen=True)
class Sides:
    """Final latents (C, h, w) of a pair. number: of its noise, the same for all kinds of pairs."""

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
    right = judged(round_, "images", len(prompts), prompts, judge)
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


class Gradients:
    """Gradients of pairs under one model that has not been trained."""

    def __init__(self, session: Session, settings: Settings) -> None:
        self.session = session
        self.parameters, self.steps = before_training(session, settings)

    def of(self, pairs: Sequence[Sides], round_: int, what: str) -> Tensor:
        """(P, D), of LoRA's second matrices."""
        policy, rows, progress = self.session.policy(round_), [], Progress(what, len(pairs))
        for sides in pairs:
            rows.append(pair_gradient(policy, sides, self.steps, self.parameters))
            progress.advance()
        return torch.stack(rows)


def orders(pairs: Tensor, truth: Tensor, n: int, rng: np.random.Generator) -> float:
    """Mean share of true pairs (N, D) that an update of n of the pairs (P, D) orders rightly."""
    products = truth @ pairs.T
    chosen = (rng.permutation(len(pairs))[:n] for _ in range(DRAWS))
    return float(np.mean([float((products[:, c].sum(1) > 0).float().mean()) for c in chosen]))


def figures(pairs: Tensor, truth: Tensor, seed: int) -> dict[str, dict[str, float | None]]:
    """Of updates of n pairs, for each n."""
    found: dict[str, dict[str, float | None]] = {}
    for n in (n for n in COUNTS if n <= len(pairs)):
        rng = np.random.default_rng(seed)
        kept = Kind(pairs, truth).figures(n, rng)
        gain = kept["gain"]
        found[str(n)] = {
            "self": kept["self"],  # type: ignore[dict-item]
            "truth": gain[0] if isinstance(gain, list) else None,
            "orders": round(orders(pairs, truth, n, rng), 4),
        }
    return found


def measure(every: dict[str, Settings], judge: Judge) -> dict[str, Any]:
    """Figures of one seed; every: settings that differ in the items of their masks only."""
    sessions = {name: open_session(settings) for name, settings in every.items()}
    for session in sessions.values():
        session.runner.run(0, session.policy(0))
    first = next(iter(sessions.values()))
    first.runner.prepare(1, first.policy(1))
    other = first.experiment.round(1)
    prompts = [prompt.text for prompt in other.sample_prompts()]
    gradients = Gradients(first, first.settings)
    true = true_pairs(other, prompts, judge)
    truth = gradients.of(true, 1, "gradients of true pairs")
    naive = round_pairs(first.experiment.round(0), targets=False)
    kinds = {"naive": gradients.of(naive, 0, "gradients of naive pairs")}
    for name, session in sessions.items():
        pairs = round_pairs(session.experiment.round(0), targets=True)
        kinds[f"fused, {name}"] = gradients.of(pairs, 0, f"gradients of pairs fused in {name}")
    return {
        "pairs": len(naive),
        "true pairs": len(true),
        "kinds": {name: figures(rows, truth, first.settings.seed) for name, rows in kinds.items()},
        "true": {str(n): round(expected_cosine(truth, n), 4) for n in (*COUNTS, len(truth))},
    }


def lines(saved: dict[str, Any]) -> list[str]:
    """Means over seeds with 95 % intervals (Student's t), a line for each kind and n."""
    said, seeds = [], list(saved.values())
    for kind in seeds[0]["kinds"]:
        for n in seeds[0]["kinds"][kind]:
            rows = [seed["kinds"][kind][n] for seed in seeds if n in seed["kinds"].get(kind, {})]
            cells = []
            for key in ("self", "truth", "orders"):
                values = [row[key] for row in rows if row[key] is not None]
                wide = f" ± {over_seeds(values)[1]:.2f}" if len(values) > 1 else ""
                cells.append(f"{key} {np.mean(values):.2f}{wide}" if values else f"{key} -")
            said.append(f"{kind:18} n = {n:3} {len(rows)} seeds  {'  '.join(cells)}")
    return said


@ends_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--images", type=int, default=8, help="of each prompt, in either round")
    parser.add_argument("--precision", default="bf16", choices=("no", "bf16"))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    flags = [f"--{key}={getattr(args, key)}" for key in ("prompts", "images", "seed", "precision")]
    every = {}
    for name, recipe in RECIPES.items():
        named = f"--name=pair_signal_{recipe}_s{args.seed}"
        every[name] = settings_of(arguments([*flags, f"--recipe={recipe}", named]))
    found = measure(every, Judge.load())
    saved = json.loads(args.out.read_text()) if args.out.exists() else {}
    saved = {key: value for key, value in saved.items() if key != "schema"}
    saved[str(args.seed)] = found
    write_json(args.out, saved)
    print("\n".join([*lines(saved), f"Figures are in {args.out}"]))


if __name__ == "__main__":
    main()
