"""Recipes compared by many short runs: each trains on one cycle of three prompts (PLAN.md).

    python -m experiments.runs.few --recipes diffusion_dpo_dfusion diffusion_dpo_naive [--cycles 3]

Run k of a recipe has the k-th three of template 1's training prompts, which are mistaken for each
other, and seed k. It samples 16 images of each in 4 rounds (192 images), and compares 32 of each
before, half-way and after, with the same noise. Runs that are there are not made again. Then
`experiments.runs.table --runs few --rounds 4 --beside RECIPE` shows gains, and leads paired by
cycle.
"""

import argparse
import subprocess
import sys

from dfusion.errors import ends_in_one_line
from experiments.runs import alignment
from experiments.runs.recipes import RECIPES

CYCLE, CYCLES = 3, 6
SIZE = ["--images=16", "--rounds=4", "--compare=32", "--compare-every=2"]
FLAGS = ["--runs=few", f"--prompts={CYCLE}", *SIZE, "--set=train.updates_per_inner_epoch=6"]


def flags_of(
    recipe: str, cycle: int, preset: str = "testbed", precision: str = "bf16"
) -> list[str]:
    """The command line of experiments.runs.alignment for a recipe and a cycle from 1."""
    place = [f"--seed={cycle}", f"--skip={CYCLE * (cycle - 1)}"]
    run = [f"--preset={preset}", f"--recipe={recipe}", f"--precision={precision}"]
    return [*run, *place, *FLAGS]


@ends_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, metavar="RECIPE", required=True)
    parser.add_argument("--preset", default="testbed", choices=("testbed", "testbed_sd3"))
    parser.add_argument("--cycles", type=int, default=CYCLES, choices=range(1, CYCLES + 1))
    parser.add_argument("--precision", default="bf16", choices=("no", "bf16", "fp16"))
    args = parser.parse_args()
    for cycle in range(1, args.cycles + 1):
        for recipe in args.recipes:
            flags = flags_of(recipe, cycle, args.preset, args.precision)
            run = alignment.arguments(flags)
            if not alignment.finished(
                alignment.settings_of(run), alignment.result_of(run), kept=False
            ):
                command = [sys.executable, "-m", "experiments.runs.alignment", *flags]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
