"""The table of recipes as a figure: what every run gained, and leads paired by run.

    python -m experiments.runs.table_plot [--runs few --rounds 4 --beside diffusion_dpo_naive]

Left: the gain in right images, by the judge, of each run, coloured by seed, with the mean as a
bar. Right: the lead over the recipe that --beside names, the mean over the seeds that both have, if
three or more, with its 95 % interval (Student's t). Writes results/<preset>/<runs>_table.png.
"""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from dfusion.errors import ends_in_one_line
from experiments.measures.intervals import over_seeds
from experiments.runs.alignment import RESULTS
from experiments.runs.alignment_plot import EACH, Run
from experiments.runs.recipes import RECIPES
from experiments.runs.table import arguments, chosen, gain_at, leads


def draw_gains(axes: Axes, runs: Mapping[str, list[Run]], rounds: int) -> None:
    """A dot for each run, a bar for their mean."""
    known = {run["settings"]["seed"] for seeds in runs.values() for run in seeds}
    for seed in sorted(known):  # for the legend
        axes.plot([], [], "o", color=f"C{seed % 10}", markersize=5, label=f"seed {seed}")
    axes.legend(fontsize=8, loc="upper right")
    for place, seeds in enumerate(runs.values()):
        gains = [100 * gain_at(run, EACH["judge"], rounds) for run in seeds]
        mean = sum(gains) / len(gains)
        axes.plot([mean, mean], [place - 0.35, place + 0.35], color="#000000")
        for run, gain in zip(seeds, gains, strict=True):
            axes.plot(gain, place, "o", color=f"C{run['settings']['seed'] % 10}", markersize=5)
    axes.set_title("points gained, right by the judge, each run", fontsize=10)


def draw_leads(axes: Axes, runs: Mapping[str, list[Run]], beside: str, rounds: int) -> None:
    """Mean leads with their intervals, where there are three or more: two give very wide ones."""
    for place, (name, seeds) in enumerate(runs.items()):
        found = leads(seeds, runs[beside], rounds)
        if name != beside and len(found) > 2:
            mean, half = over_seeds(found)
            axes.errorbar(mean, place, xerr=half, fmt="s", color="#0072B2", capsize=3)
    axes.set_title(f"lead over {RECIPES[beside].label}, points", fontsize=10)


def draw(runs: Mapping[str, list[Run]], beside: str, rounds: int, path: Path) -> None:
    """runs: of each recipe, in the order in which they are drawn."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 0.3 * len(runs) + 1.2), sharey=True, layout="constrained"
    )
    draw_gains(left, runs, rounds)
    draw_leads(right, runs, beside, rounds)
    for axes in (left, right):
        axes.axvline(0, color="#000000", linewidth=0.8)
        axes.grid(axis="x", alpha=0.3)
    left.set_yticks(range(len(runs)), [RECIPES[name].label for name in runs])
    left.set_ylim(len(runs) - 0.5, -0.5)
    figure.savefig(path, dpi=130)


@ends_in_one_line()
def main() -> None:
    args = arguments(__doc__)
    template = "" if args.template == 1 else f"_t{args.template}"
    out = RESULTS / args.preset / f"{args.runs}_table{template}.png"
    draw(chosen(args), args.beside, args.rounds, out)
    print(f"Wrote {out}")


if __name__ == "__main__":
    main()
