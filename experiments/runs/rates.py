"""The learning rate, to be chosen on naive DPO, in every template, before methods are compared.

    python -m experiments.runs.rates [--preset testbed] [--rates 5e-4 1e-3] [--rounds 2] [--seed 42]

Each is a run of `alignment` with naive pairs; runs that are there are not made again,
and the one at the preset's rate is the curve that other methods are compared with. Prints a table
and writes results/<preset>/rates.png: what each gained on the model before training, images paired
by noise, with 95 % intervals. These hold for one seed.
"""

import argparse

from dfusion.settings.presets import PRESETS
from experiments.pairs.dots import draw
from experiments.runs import alignment, side_by_side
from experiments.runs.side_by_side import gains_of, make, shared_flags, table, there

TEMPLATES = (1, 2, 3)
RATES = {"testbed": (5e-4, 1e-3, 2e-3), "paper": (3e-5, 1e-4, 3e-4)}
ROUNDS = {"testbed": 2, "paper": 10}


def runs_of(args: argparse.Namespace) -> dict[str, list[str]]:
    """The command line of experiments.runs.alignment for every template and rate, by label."""
    usual = PRESETS[args.preset]().train.learning_rate
    runs = {}
    for template in TEMPLATES:
        for rate in args.rates:
            flags = [*shared_flags(args), "--pairs=naive", f"--template={template}"]
            if rate != usual:
                name = f"rate_{rate:g}_t{template}_s{args.seed}"
                flags += [f"--name={name}", f"--set=train.learning_rate={rate:g}"]
            runs[f"template {template}, rate {rate:g}"] = flags
    return runs


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = side_by_side.parser(__doc__, ROUNDS)
    parser.add_argument(
        "--rates", type=float, nargs="+", help="testbed: 5e-4 1e-3 2e-3, paper: 3e-5 1e-4 3e-4"
    )
    args = parser.parse_args(given)
    args.rates = args.rates or RATES[args.preset]
    args.rounds = args.rounds or ROUNDS[args.preset]
    return args


def main() -> None:
    args = arguments()
    runs = runs_of(args)
    make(runs, args.rounds)
    found = there(runs, args.rounds)
    rows = {label: gains_of(figures, args.rounds) for label, figures in found.items()}
    for label, line in zip(["", *rows], table(rows), strict=True):
        print(f"{label:26} {line}")
    out = alignment.RESULTS / args.preset / "rates.png"
    draw(rows, out)
    print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
