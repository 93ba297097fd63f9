"""Recipes compared by many short runs: each trains on one cycle of three prompts (PLAN.md).

    python -m experiments.runs.few --recipes diffusion_dpo_dfusion diffusion_dpo_naive

Run k of a recipe has seed k and the k-th three of template 1's training prompts, which are mistaken
for each other; there are six, and run 7 has the first three again. It samples 16 images of each in
4 rounds (192 images), and compares 32 of each before, half-way and after, with the same noise; in
fp32, which all processors have. Runs that are there are not made again. Then
`experiments.runs.table --runs few --rounds 4 --beside RECIPE` shows gains, and leads paired by run.
"""

import argparse
import subprocess
import sys

from dfusion.errors import ends_in_one_line
from experiments.runs import alignment
from experiments.runs.recipes import RECIPES

CYCLE, CYCLES = 3, 6
SIZE = ["--images=16", "--compare=32", "--compare-every=2"]
FLAGS = ["--runs=few", f"--prompts={CYCLE}", *SIZE, "--set=train.updates_per_inner_epoch=6"]


def flags_of(
    recipe: str, k: int, preset: str = "testbed", precision: str = "no", rounds: int = 4
) -> list[str]:
    """The command line of experiments.runs.alignment for run k, from 1, of a recipe."""
    place = [f"--seed={k}", f"--skip={CYCLE * ((k - 1) % CYCLES)}"]
    run = [f"--preset={preset}", f"--recipe={recipe}", f"--precision={precision}"]
    return [*run, *place, f"--rounds={rounds}", *FLAGS]


@ends_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, metavar="RECIPE", required=True)
    parser.add_argument("--preset", default="testbed", choices=("testbed", "testbed_sd3"))
    parser.add_argument(
        "--seeds", nargs=2, type=int, default=(1, CYCLES), metavar=("FIRST", "LAST")
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    args = parser.parse_args()
    for k in range(args.seeds[0], args.seeds[1] + 1):
        for recipe in args.recipes:
            flags = flags_of(recipe, k, args.preset, args.precision, args.rounds)
            run = alignment.arguments(flags)
            if not alignment.finished(
                alignment.settings_of(run), alignment.result_of(run), kept=False
            ):
                command = [sys.executable, "-m", "experiments.runs.alignment", *flags]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
