"""How fusion changes the size of the predicted noise, step by step.

    python -m experiments.pairs.shrinkage [--template 1 --prompts 12 --images 8]

At every state of a target, the noise predicted with fusion is compared with what the same network
predicts without, e. Training on fused pairs moves e towards the fused prediction f. How far that
makes e shorter, to first order, is

    shrinkage = -<f - e, e> / |e|^2,     beside     shift = |f - e| / |e|.

If f is as long as e, the shrinkage is shift^2 / 2 and never negative: turning e makes it shorter
along its old direction. Pairs are fused both ways. Of exchanged pairs, training moves e away from
f. Means over steps go to results/testbed/shrinkage.json.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from dfusion.errors import ends_in_one_line
from dfusion.method.pairing import Pair
from dfusion.method.sampling import Policy
from dfusion.progress import Progress
from dfusion.rounds.session import open_session
from dfusion.storage.experiment import Round
from dfusion.storage.files import read_tensors, write_json
from experiments.runs.alignment import RESULTS, arguments, settings_of

OUT = RESULTS / "testbed" / "shrinkage.json"
PLACES = ("everywhere", "in the mask", "outside")


def change(policy: Policy, round_: Round, p: int, pair: Pair) -> tuple[Tensor, Tensor]:
    """Predictions without fusion and their change by it, both (T, C, h, w), at a target's states.

    A target's next state is (fused mean) + std z, with its base's z; this gives f.
    """
    sampler = policy.sampler
    latents = read_tensors(round_.target(p))["latents"].float()
    steps = torch.arange(len(sampler))
    _, z = policy.noise([pair.base])
    with torch.no_grad():
        e, _ = policy.predict(latents[:-1], steps, policy.model.encode([pair.prompt] * len(steps)))
    mean, std = sampler.transition(latents[:-1], e, steps)
    moved = latents[1:] - std.view(-1, 1, 1, 1) * z[0].float() - mean
    return e, moved / sampler.output_scale.view(-1, 1, 1, 1)


def sums(policy: Policy, round_: Round, p: int, pair: Pair) -> Tensor:
    """(3, T, 3): by place and step, <f - e, e>, |f - e|^2 and |e|^2."""
    e, moved = change(policy, round_, p, pair)
    mask = read_tensors(round_.target(p))["masks"][:, None].float()
    inside = torch.nn.functional.interpolate(mask, size=e.shape[-2:])
    products = torch.stack([moved * e, moved.square(), e.square()], -1)
    places = torch.stack([torch.ones_like(inside), inside, 1 - inside])[..., None]
    return (products * places).sum((2, 3, 4))


def figures(rows: Tensor) -> dict[str, dict[str, object]]:
    """rows: (P, 3, T, 3) of `sums`, one a pair."""
    along, moved, whole = rows.sum(0).unbind(-1)  # (3, T) each
    kept: dict[str, dict[str, object]] = {}
    for k, place in enumerate(PLACES):
        shrinkage, shift = -along[k] / whole[k], (moved[k] / whole[k]).sqrt()
        kept[place] = {
            "shrinkage": round(shrinkage.mean().item(), 4),
            "shift": round(shift.mean().item(), 4),
            "shrinkage by step": [round(v, 4) for v in shrinkage.tolist()],
        }
    return kept


@ends_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--template", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--images", type=int, default=8, help="of each prompt")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    flags = [f"--{key}={getattr(args, key)}" for key in ("template", "prompts", "images", "seed")]
    name = f"shrinkage_t{args.template}_s{args.seed}"
    changes = ["--precision=no", "--set=pair.rule=both_ways"]
    session = open_session(settings_of(arguments([*flags, *changes, f"--name={name}"])))
    policy = session.policy(0)
    round_ = session.runner.run(0, policy)
    pairs, scores = round_.pairs() or (), round_.scores("images")
    progress, rows = Progress("predicting at targets", len(pairs)), []
    for p, pair in enumerate(pairs):
        rows.append(sums(policy, round_, p, pair))
        progress.advance()
    exchanged = torch.tensor([scores[pair.reference] < scores[pair.base] for pair in pairs])
    stacked = torch.stack(rows)
    found = {
        "base with the reference": figures(stacked[~exchanged]),
        "exchanged": figures(stacked[exchanged]),
    }
    saved = json.loads(args.out.read_text()) if args.out.exists() else {}
    saved[f"t{args.template}_s{args.seed}"] = {"pairs": len(pairs) // 2, **found}
    write_json(args.out, saved)
    for kind, places in found.items():
        for place, row in places.items():
            print(f"{kind}, {place}: shrinkage {row['shrinkage']}, shift {row['shift']}")
    print(f"Figures are in {args.out}")


if __name__ == "__main__":
    main()
