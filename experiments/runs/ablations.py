"""What the paper leaves open, one choice changed at a time: masks, adoption, pairing, Eq. 6.

    python -m experiments.runs.ablations [--preset testbed] [--rounds 2] [--seed 42] [--only or]

Each is a run of `experiments.runs.alignment` (DPO + D-Fusion, template 1) with one setting changed,
beside the curve of the preset itself; runs that are there are not made again. Prints a table and
writes results/<preset>/ablations.png: what each gained on the model before training, images paired
by noise, with 95 % intervals; the table also says how much more than the preset. These hold for one
seed; runs of another seed may differ by more.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from experiments.pairs.dots import draw
from experiments.runs import alignment, side_by_side
from experiments.runs.side_by_side import gains_of, leads_of, make, shared_flags, table, there


@dataclass(frozen=True)
class Choice:
    """label: in the table and the figure. changes: settings that differ from the preset's."""

    label: str
    changes: tuple[str, ...] = ()


CHOICES = {
    "as_it_is": Choice("the preset"),
    "or": Choice("masks merged by OR", ("mask.merge=or",)),
    "otsu": Choice("masks by Otsu's threshold", ("mask_thr_file=", "mask_thr=auto")),
    "mask_of_grid": Choice("masks of all layers of that grid", ("mask.layers=first_up_grid",)),
    "no_mask": Choice("no mask", ("fusion.masked=False",)),
    "adopt_half": Choice("adoption threshold 0.5", ("pair.adoption_threshold=0.5",)),
    "adopt_better": Choice("adoption threshold 0", ("pair.adoption_threshold=0.0",)),
    "adopt_all": Choice("every target adopted", ("pair.adoption=all",)),
    "quarter": Choice("pairing: quarter", ("pair.rule=quarter",)),
    "log_ratio": Choice("log-ratio in Eq. 6", ("train.ratio=log_ratio",)),
    "beta_0.01": Choice("β = 0.01", ("train.beta=0.01",)),
    "beta_1": Choice("β = 1", ("train.beta=1.0",)),
}
ROUNDS = {"testbed": 2, "paper": 20}


def flags_of(name: str, args: argparse.Namespace) -> list[str]:
    """The command line of experiments.runs.alignment for a choice; of none, the curve itself."""
    flags = shared_flags(args)
    changes = [f"--set={change}" for change in CHOICES[name].changes]
    return [*flags, f"--name=ablation_{name}_s{args.seed}", *changes] if changes else flags


def fused_share(figures: dict[str, Any], count: int) -> tuple[float, float]:
    """Of a run's first `count` rounds: share of targets adopted, share of cells in the mask."""
    rounds = figures["rounds"][:count]
    adopted, covered = (
        sum(r[key] for r in rounds) / len(rounds) for key in ("adopted", "mask_coverage")
    )
    return adopted, covered


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = side_by_side.parser(__doc__, ROUNDS)
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=list(CHOICES))
    args = parser.parse_args(given)
    args.rounds = args.rounds or ROUNDS[args.preset]
    return args


def main() -> None:
    args = arguments()
    runs = {choice.label: flags_of(name, args) for name, choice in CHOICES.items()}
    only = [CHOICES[name].label for name in args.only]
    make({label: runs[label] for label in only}, args.rounds)
    found = there(runs, args.rounds)
    rows = {label: gains_of(figures, args.rounds) for label, figures in found.items()}
    heading, *lines = table(rows)
    print(f"{'':32} {'adopted':>8} {'mask':>6} {heading}")
    for (label, figures), line in zip(found.items(), lines, strict=True):
        adopted, covered = fused_share(figures, args.rounds)
        print(f"{label:32} {adopted:8.0%} {covered:6.0%} {line}")
    preset = CHOICES["as_it_is"].label
    if preset in found:
        others = {label: figures for label, figures in found.items() if label != preset}
        more = {k: leads_of(run, found[preset], args.rounds) for k, run in others.items()}
        print(f"\n{'more than ' + preset:42} " + table({})[0])
        for label, line in zip(more, table(more)[1:], strict=True):
            print(f"{label:42} {line}")
    out = alignment.RESULTS / args.preset / "ablations.png"
    draw(rows, out, compare=preset)
    print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
