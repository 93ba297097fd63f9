"""The learning rate of each method, chosen on held-out prompts before methods are compared.

    python -m experiments.runs.rates [--pairs naive dfusion] [--rates 1e-3 3e-3 1e-2] [--rounds 4]

Each is a run of `alignment` on prompts that no comparison uses (testbed: 12, of 8 images a round),
with equal effort for every method; runs that are there are not made again. Prints a table and
writes results/<preset>/rates.png: what each gained on the model before training, images paired by
noise, with 95 % intervals over images. These hold for one seed.
"""

import argparse

from experiments.pairs.dots import draw
from experiments.runs import alignment, side_by_side
from experiments.runs.side_by_side import gains_of, make, shared_flags, table, there

RATES = {"testbed": (1e-3, 3e-3, 1e-2), "paper": (3e-5, 1e-4, 3e-4)}
ROUNDS = {"testbed": 4, "paper": 10}


def runs_of(args: argparse.Namespace) -> dict[str, list[str]]:
    """The command line of experiments.runs.alignment for every kind of pairs and rate, by label."""
    held_out = ["--held-out"] if args.preset == "testbed" else []
    runs = {}
    for pairs in args.pairs:
        for rate in args.rates:
            name = f"rate_{args.method}_{pairs}_{rate:g}_t{args.template}_s{args.seed}"
            runs[f"{pairs}, rate {rate:g}"] = [
                *shared_flags(args),
                *held_out,
                f"--name={name}",
                f"--method={args.method}",
                f"--pairs={pairs}",
                f"--template={args.template}",
                f"--compare-every={args.rounds}",
                f"--set=train.learning_rate={rate:g}",
            ]
    return runs


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = side_by_side.parser(__doc__, ROUNDS)
    parser.add_argument("--method", default="dpo", choices=("dpo", "ddpo", "dpok"))
    parser.add_argument("--pairs", nargs="+", default=["dfusion", "naive"])
    parser.add_argument("--template", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument(
        "--rates", type=float, nargs="+", help="testbed: 1e-3 3e-3 1e-2, paper: 3e-5 1e-4 3e-4"
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
