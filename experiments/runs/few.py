"""Recipes compared by many short runs: each trains on one cycle of mistakes (PLAN.md).

    python -m experiments.runs.few --recipes diffusion_dpo_dfusion diffusion_dpo_naive

Run k of a recipe has seed k and the k-th cycle of a template's training prompts, which are mistaken
for each other; six are used, and run 7 has the first again. It samples 48 images in each of 4
rounds (192 images), and compares 96 before, half-way and after, with the same noise; in fp32, which
all processors have. Runs that are there are not made again. Then `experiments.runs.table --runs few
--rounds 4 --beside RECIPE` shows gains, and leads paired by run.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence

from dfusion.errors import ends_in_one_line
from experiments.runs import alignment
from experiments.runs.recipes import RECIPES
from testbed.world.prompt_lists import cycle_of
from testbed.world.words import parse

CYCLES = 6
SAMPLED, COMPARED = 48, 96  # images in a round and in a comparison
FLAGS = ["--runs=few", "--compare-every=2", "--set=train.updates_per_inner_epoch=6"]


def cycles_of(texts: Sequence[str]) -> list[range]:
    """Places of the first CYCLES cycles of mistakes. Prompts of a cycle stand side by side."""
    found, start = [], 0
    while start < len(texts):
        stop = start + len(cycle_of(parse(texts[start])))
        found.append(range(start, stop))
        start = stop
    return found[:CYCLES]


def flags_of(
    recipe: str,
    k: int,
    preset: str = "testbed",
    template: int = 1,
    precision: str = "no",
    rounds: int = 4,
) -> list[str]:
    """The command line of experiments.runs.alignment for run k, from 1, of a recipe."""
    listed = json.loads(alignment.prompts_file(preset, template, "train").read_text())
    cycle = cycles_of(listed)[(k - 1) % CYCLES]
    place = [f"--template={template}", f"--skip={cycle.start}", f"--prompts={len(cycle)}"]
    size = [f"--images={SAMPLED // len(cycle)}", f"--compare={COMPARED // len(cycle)}"]
    run = [f"--preset={preset}", f"--recipe={recipe}", f"--precision={precision}", f"--seed={k}"]
    return [*run, *place, f"--rounds={rounds}", *size, *FLAGS]


@ends_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, metavar="RECIPE", required=True)
    parser.add_argument("--preset", default="testbed", choices=("testbed", "testbed_sd3"))
    parser.add_argument("--template", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument(
        "--seeds", nargs=2, type=int, default=(1, CYCLES), metavar=("FIRST", "LAST")
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--precision", default="no", choices=("no", "bf16", "fp16"))
    args = parser.parse_args()
    for k in range(args.seeds[0], args.seeds[1] + 1):
        for recipe in args.recipes:
            flags = flags_of(recipe, k, args.preset, args.template, args.precision, args.rounds)
            run = alignment.arguments(flags)
            if not alignment.finished(
                alignment.settings_of(run), alignment.result_of(run), kept=False
            ):
                command = [sys.executable, "-m", "experiments.runs.alignment", *flags]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
