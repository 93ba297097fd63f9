"""What an experiment's pairs differ in: how much of it lies inside the mask, and how much outside.

    python -m experiments.pairs.difference data/test [--round 1 --judge --out FILE]

Of naive pairs (reference and base) and of D-Fusion's (target and base): the squared difference of
final latents, mean over all cells, split into a part inside the mask and one outside. The two add
up. A cell belongs to the mask if it was set in at least half of the fused steps. The fewer of a
naive pair's differences lie inside, the more there is for fusion to take away. --judge adds which
images are right (testbed only).
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dfusion.errors import UserError, ends_in_one_line
from dfusion.progress import Progress
from dfusion.storage.experiment import Experiment, Round
from dfusion.storage.files import read_tensors, write_json
from experiments.measures.measure import judged
from testbed.models.judge import Judge

JUDGED = ("base", "reference", "target")
PAIRS = {"naive": "reference and base", "fused": "target and base"}


def split(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """(2,) mean squared difference of latents (C, h, w) inside and outside of mask (gh, gw)."""
    inside = interpolate(mask[None, None].float(), size=a.shape[-2:])[0]
    squares = (a - b).square()
    return torch.stack([(squares * inside).mean(), (squares * (1 - inside)).mean()])


def usual_mask(masks: Tensor) -> Tensor:
    """(gh, gw) bool of a target's masks (T, gh, gw): set in at least half of its fused steps."""
    fused = masks.flatten(1).any(1)
    return masks[fused].float().mean(0) >= 0.5


def differences(round_: Round) -> dict[str, Any]:
    """Means over a round's pairs."""
    pairs = round_.pairs() or ()
    progress, rows, cells = Progress("comparing", len(pairs)), [], []
    for p, pair in enumerate(pairs):
        target = read_tensors(round_.target(p))
        mask = usual_mask(target["masks"])
        base, reference = (
            read_tensors(round_.trajectory(i))["latents"][-1].float()
            for i in (pair.base, pair.reference)
        )
        others = (reference, target["latents"][-1].float())
        rows.append(torch.stack([split(other, base, mask) for other in others]))
        cells.append(mask.float().mean())
        progress.advance()
    means = torch.stack(rows).mean(0).tolist()
    return {
        "pairs": len(pairs),
        "mask": round(torch.stack(cells).mean().item(), 4),
        **{
            kind: {"inside": round(inside, 4), "outside": round(outside, 4)}
            for kind, (inside, outside) in zip(PAIRS, means, strict=True)
        },
    }


def corrected(round_: Round, judge: Judge) -> dict[str, Any]:
    """Shares of right images, and how many wrong bases with a right reference fusion corrects."""
    texts = [pair.prompt for pair in round_.pairs() or ()]
    right = {kind: judged(round_, f"{kind}_images", texts, judge) for kind in JUDGED}
    mendable = ~right["base"] & right["reference"]
    return {
        **{kind: round(found.float().mean().item(), 4) for kind, found in right.items()},
        "mendable": int(mendable.sum()),
        "mended": int(right["target"][mendable].sum()),
    }


@ends_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="an experiment, e.g. data/test")
    parser.add_argument("--round", type=int, default=1, help="from 1")
    parser.add_argument("--judge", action="store_true", help="which images are right (testbed)")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    args = parser.parse_args()
    round_ = Experiment(args.folder).rounds().get(args.round - 1)
    pairs = round_.pairs() if round_ else None
    if round_ is None or not pairs or not round_.target(len(pairs) - 1).exists():
        raise UserError(f"{args.folder}: round {args.round} has no targets; run run_sample.py")
    found = differences(round_)
    print(f"{found['pairs']} pairs; the mask has {found['mask']:.0%} of the cells")
    for kind, between in PAIRS.items():
        inside, outside = found[kind].values()
        share = inside / (inside + outside)
        print(f"{between}: {inside:.3f} inside the mask ({share:.0%}), {outside:.3f} outside")
    if args.judge:
        found["right"] = right = corrected(round_, Judge.load())
        shares = ", ".join(f"{right[kind]:.0%} of {kind}s" for kind in JUDGED)
        print(
            f"right: {shares}; fusion corrects {right['mended']} of {right['mendable']} wrong bases"
        )
    if args.out:
        write_json(args.out, found)
        print(f"Figures are in {args.out}")


if __name__ == "__main__":
    main()
