"""Runs that differ in one setting, side by side: learning rates, and what the paper leaves open.

    python -m experiments.runs.sweep rates [--recipes dpo_naive …] [--rates 1e-3 3e-3]
    python -m experiments.runs.sweep ablations [--only or no_mask]

rates: every recipe at every rate, with equal effort, on prompts that no comparison uses (testbed:
12 held-out ones, of 8 images a round), to choose rates before recipes are compared.
ablations: DPO + D-Fusion, template 1, with one choice changed at a time (masks, adoption, pairing,
Eq. 6), beside the curve of the preset itself.

Each is a run of `alignment`; runs that are there are not made again. Prints a table and writes
results/<preset>/<sweep>.png: what each gained on the model before training, images paired by noise,
with 95 % intervals over images; of ablations also how much more than the preset. These hold for one
seed; runs of another seed may differ by more.
"""

import argparse
from typing import Any

from experiments.pairs.dots import draw
from experiments.runs import alignment, side_by_side
from experiments.runs.recipes import RECIPES
from experiments.runs.side_by_side import gains_of, leads_of, make, shared_flags, table, there

RATES = {"testbed": (1e-3, 3e-3), "paper": (3e-5, 1e-4, 3e-4)}
ROUNDS = {
    "rates": {"testbed": 9, "paper": 10},
    "ablations": {"testbed": 2, "paper": 20},
}
PRESET = "the preset"
# By name: what the table says, and the settings that differ from the preset's.
CHOICES: dict[str, tuple[str, tuple[str, ...]]] = {
    "as_it_is": (PRESET, ()),
    "or": ("masks merged by OR", ("mask.merge=or",)),
    "otsu": ("masks by Otsu's threshold", ("mask_thr_file=", "mask_thr=auto")),
    "mask_of_grid": ("masks of all layers of that grid", ("mask.layers=first_up_grid",)),
    "no_mask": ("no mask", ("fusion.masked=False",)),
    "adopt_half": ("adoption threshold 0.5", ("pair.adoption_threshold=0.5",)),
    "adopt_better": ("adoption threshold 0", ("pair.adoption_threshold=0.0",)),
    "adopt_all": ("every target adopted", ("pair.adoption=all",)),
    "quarter": ("pairing: quarter", ("pair.rule=quarter",)),
    "log_ratio": ("log-ratio in Eq. 6", ("train.ratio=log_ratio",)),
    "beta_0.01": ("β = 0.01", ("train.beta=0.01",)),
    "beta_1": ("β = 1", ("train.beta=1.0",)),
}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sweeps = parser.add_subparsers(dest="sweep", required=True, metavar="rates or ablations")
    rates, ablations = (
        sweeps.add_parser(name, parents=[side_by_side.parser(ROUNDS[name])]) for name in ROUNDS
    )
    rates.add_argument(
        "--recipes",
        nargs="+",
        default=["dpo_naive", "dpo_dfusion"],
        choices=RECIPES,
        metavar="RECIPE",
        help=f"of {', '.join(RECIPES)}",
    )
    rates.add_argument("--template", type=int, default=1, choices=(1, 2, 3))
    rates.add_argument(
        "--rates", type=float, nargs="+", help="testbed: 1e-3 3e-3, paper: 3e-5 1e-4 3e-4"
    )
    ablations.add_argument("--only", nargs="+", choices=CHOICES, default=list(CHOICES))
    args = parser.parse_args(given)
    args.rounds = args.rounds or ROUNDS[args.sweep][args.preset]
    return args


def runs_of(args: argparse.Namespace) -> dict[str, list[str]]:
    """The command line of experiments.runs.alignment for every run of the sweep, by label."""
    return rates_of(args) if args.sweep == "rates" else ablations_of(args)


def rates_of(args: argparse.Namespace) -> dict[str, list[str]]:
    held_out = ["--held-out", "--prompts=12"] if args.preset == "testbed" else []
    runs = {}
    for recipe in args.recipes:
        for rate in args.rates or RATES[args.preset]:
            runs[f"{recipe}, rate {rate:g}"] = [
                *shared_flags(args),
                *held_out,
                f"--name=rate_{recipe}_{rate:g}_t{args.template}_s{args.seed}",
                f"--recipe={recipe}",
                f"--template={args.template}",
                f"--set=train.learning_rate={rate:g}",
            ]
    return runs


def ablations_of(args: argparse.Namespace) -> dict[str, list[str]]:
    """The preset itself is the curve of `alignment`."""
    runs = {}
    for name in args.only:
        label, changes = CHOICES[name]
        named = [f"--name=ablation_{name}_s{args.seed}"] if changes else []
        runs[label] = [*shared_flags(args), *named, *(f"--set={change}" for change in changes)]
    return runs


def fused_share(figures: dict[str, Any], count: int) -> tuple[str, str]:
    """Of a run's first `count` rounds: shares of targets adopted and of cells in the mask."""
    rounds = figures["rounds"][:count]
    known = [[row[key] for row in rounds] for key in ("adopted", "mask_coverage")]
    if figures["settings"]["train"]["pairs"] == "naive":
        return "", ""
    adopted, covered = (f"{sum(values) / len(values):.0%}" for values in known)
    return adopted, covered


def show(found: dict[str, dict[str, Any]], rounds: int) -> None:
    """Print what each run gained and, if the preset is among them, how much more than it."""
    heading, *lines = table({label: gains_of(run, rounds) for label, run in found.items()})
    print(f"{'':32} {'adopted':>8} {'mask':>6} {heading}")
    for (label, figures), line in zip(found.items(), lines, strict=True):
        adopted, covered = fused_share(figures, rounds)
        print(f"{label:32} {adopted:>8} {covered:>6} {line}")
    if PRESET in found:
        others = {label: run for label, run in found.items() if label != PRESET}
        more = {label: leads_of(run, found[PRESET], rounds) for label, run in others.items()}
        print(f"\n{'more than ' + PRESET:48} " + table({})[0])
        for label, line in zip(more, table(more)[1:], strict=True):
            print(f"{label:48} {line}")


def main() -> None:
    args = arguments()
    runs = runs_of(args)
    make(runs, args.rounds)
    every = runs_of(arguments([args.sweep, *shared_flags(args)]))
    found = there({**every, **runs}, args.rounds)
    show(found, args.rounds)
    out = alignment.RESULTS / args.preset / f"{args.sweep}.png"
    rows = {label: gains_of(figures, args.rounds) for label, figures in found.items()}
    draw(rows, out, compare=PRESET)
    print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
