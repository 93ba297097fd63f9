"""What the paper leaves open, one choice changed at a time: masks, adoption, pairing, Eq. 6.

    python -m experiments.ablations [--preset testbed] [--rounds 2] [--seed 42] [--only or]

Each is a run of `experiments.alignment` (DPO + D-Fusion, template 1) with one setting changed,
beside the curve of the preset itself; runs that are there are not made again. Prints a table and
writes results/<preset>/ablations.png: what each gained on the model before training, images paired
by noise, with 95 % intervals. These hold for one seed; runs of another seed may differ by more.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from experiments import alignment
from experiments.dots import draw
from experiments.intervals import Gain, gain_if_any


@dataclass(frozen=True)
class Choice:
    """label: in the table and the figure. changes: settings that differ from the preset's."""

    label: str
    changes: tuple[str, ...] = ()


CHOICES = {
    "as_it_is": Choice("the preset"),
    "or": Choice("masks merged by OR", ("mask.merge=or",)),
    "otsu": Choice("masks by Otsu's threshold", ("mask_thr_file=", "mask_thr=auto")),
    "mask_of_all_layers": Choice("masks of all layers", ("mask.layers=all",)),
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
    """The command line of experiments.alignment for a choice; of none, the curve itself."""
    flags = [f"--preset={args.preset}", f"--seed={args.seed}", f"--rounds={args.rounds}"]
    flags += [f"--model={args.model}"] if args.model else []
    changes = [f"--set={change}" for change in CHOICES[name].changes]
    return [*flags, f"--name=ablation_{name}_s{args.seed}", *changes] if changes else flags


def figures_after(flags: list[str], rounds: int) -> dict[str, Any] | None:
    """Figures of the run that these flags of experiments.alignment make; None where there is none
    with its settings, or none after so many rounds."""
    run = alignment.arguments(flags)
    figures = alignment.figures_of(alignment.settings_of(run), alignment.result_of(run))
    compared = figures["same_noise"] if figures else ()
    return figures if any(row["rounds"] == rounds for row in compared) else None


def make(runs: dict[str, list[str]], rounds: int) -> None:
    """Make every run that is missing. Ends the program where one fails."""
    for label, flags in runs.items():
        if figures_after(flags, rounds) is None:
            command = [sys.executable, "-m", "experiments.alignment", *flags]
            if code := subprocess.run(command).returncode:
                raise SystemExit(code)
            if figures_after(flags, rounds) is None:
                raise SystemExit(
                    f"--rounds {rounds}: the run '{label}' went further before and has no "
                    f"comparison there; give rounds that it has"
                )


def there(runs: dict[str, list[str]], rounds: int) -> dict[str, dict[str, Any]]:
    """The figures of those runs that have any, by label."""
    found = {label: figures_after(flags, rounds) for label, flags in runs.items()}
    return {label: figures for label, figures in found.items() if figures}


def gains_of(figures: dict[str, Any], count: int) -> dict[str, Gain]:
    """What a run gained in `count` rounds on the model before training."""
    compared = {row["rounds"]: row for row in figures["same_noise"]}
    first, last = compared[0], compared[count]
    keys = {"score": "scores", "right": "right", "second": "second_scores"}
    return {key: gain_if_any(last[name], first[name]) for key, name in keys.items()}


def fused_share(figures: dict[str, Any], count: int) -> tuple[float, float]:
    """Of a run's first `count` rounds: share of targets adopted, share of cells in the mask."""
    rounds = figures["rounds"][:count]
    adopted, covered = (
        sum(r[key] for r in rounds) / len(rounds) for key in ("adopted", "mask_coverage")
    )
    return adopted, covered


def table(rows: dict[str, dict[str, Gain]]) -> dict[str, str]:
    """Gains as text, by label, with a heading first."""
    keys = ("score", "right", "second")
    lines = {"": " ".join(f"{key:>16}" for key in keys)}
    for label, row in rows.items():
        found = [row[key] for key in keys]
        texts = [f"{gain[0]:+.3f} ± {gain[1]:.3f}" if gain else "" for gain in found]
        lines[label] = " ".join(f"{text:>16}" for text in texts)
    return lines


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="testbed", choices=("testbed", "paper"))
    parser.add_argument("--model", help="a folder, file or hub id; default: the preset's")
    parser.add_argument("--rounds", type=int, help="testbed: 2, paper: 20")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=list(CHOICES))
    args = parser.parse_args(given)
    args.rounds = args.rounds or ROUNDS[args.preset]
    return args


def main() -> None:
    args = arguments()
    runs = {choice.label: flags_of(name, args) for name, choice in CHOICES.items()}
    make({CHOICES[name].label: flags_of(name, args) for name in args.only}, args.rounds)
    found = there(runs, args.rounds)
    rows = {label: gains_of(figures, args.rounds) for label, figures in found.items()}
    shares = {label: fused_share(figures, args.rounds) for label, figures in found.items()}
    for label, line in table(rows).items():
        left = "{:8.0%} {:6.0%}".format(*shares[label]) if label else f"{'adopted':>8} {'mask':>6}"
        print(f"{label:26} {left} {line}")
    out = alignment.RESULTS / args.preset / "ablations.png"
    draw(rows, out, compare=CHOICES["as_it_is"].label)
    print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
