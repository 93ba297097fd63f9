"""Every comparison that PLAN.md asks for, as leads: a Markdown table and a figure.

    python -m experiments.runs.leads

Each row compares two recipes of short runs (`experiments.runs.few`), paired by seed: how many
points more of the images are right, by the judge, than before training, and by how much one recipe
leads, from as many images and from as much computation (see `experiments.runs.table`). Intervals
are Student's t over seeds, 95 %. Rows of which fewer than two seeds have been run are left out. The
figure is results/testbed/leads.png.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from dfusion.errors import ends_in_one_line
from experiments.measures.intervals import over_seeds
from experiments.runs.alignment import RESULTS
from experiments.runs.alignment_plot import Run, Runs, at, load
from experiments.runs.few import SAMPLED
from experiments.runs.recipes import RECIPES
from experiments.runs.table import points_gained, spread

HEADING = (
    "recipe",
    "against",
    "template",
    "images",
    "seeds",
    "gained",
    "the other gained",
    "lead",
    "lead, equal computation",
)


def went_as_far(runs: list[Run], rounds: int) -> dict[int, Run]:
    """Those that were compared after so many rounds, by seed."""
    return {run["settings"]["seed"]: run for run in runs if rounds in at(run)}


@dataclass(frozen=True)
class Comparison:
    """Of two recipes, after so many rounds, on the seeds from first to last; of several templates,
    their mean for each seed. against_rounds: the other recipe's, if it has more."""

    recipe: str
    against: str
    rounds: int = 4
    seeds: tuple[int, int] = (1, 3)
    templates: tuple[int, ...] = (1,)
    against_rounds: int | None = None

    @property
    def images(self) -> str:
        used = [SAMPLED * n for n in (self.rounds, self.against_rounds) if n]
        return " against ".join(map(str, used))

    @property
    def other_rounds(self) -> int:
        return self.against_rounds or self.rounds

    def gained(self, runs: Runs, equal_computation: bool = False) -> np.ndarray:
        """Points that both recipes gained, (S, 2), of each seed that has all runs."""
        by_seed: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for template in self.templates:
            ours = went_as_far(runs[template].get(self.recipe, []), self.rounds)
            theirs = went_as_far(runs[template].get(self.against, []), self.other_rounds)
            for seed in range(self.seeds[0], self.seeds[1] + 1):
                if seed in ours and seed in theirs:
                    pair, rounds = (ours[seed], theirs[seed]), (self.rounds, self.other_rounds)
                    by_seed[seed].append(points_gained(*pair, *rounds, equal_computation))
        every = [np.mean(v, axis=0) for v in by_seed.values() if len(v) == len(self.templates)]
        return np.array(every).reshape(-1, 2)

    def found(self, runs: Runs, equal_computation: bool = False) -> list[float]:
        """Leads in points, one a seed."""
        ours, theirs = self.gained(runs, equal_computation).T
        return [float(lead) for lead in ours - theirs]


TEMPLATES = ((1,), (2,), (3,), (1, 2, 3))
PAIRS = (  # D-Fusion's pairs against naive ones, with each loss
    Comparison("dpo_dfusion", "dpo_naive"),
    Comparison("ddpo_dfusion", "ddpo_naive"),
    Comparison("ddpo_dfusion", "ddpo_naive", seeds=(4, 9)),
    Comparison("ddpo_dfusion", "ddpo_naive", seeds=(1, 11)),
    Comparison("dpok_dfusion", "dpok_naive"),
    Comparison("diffusion_dpo_dfusion", "diffusion_dpo_naive", 2, (4, 13)),
    *(Comparison("diffusion_dpo_dfusion", "diffusion_dpo_naive", templates=t) for t in TEMPLATES),
    Comparison("fdfo_dfusion", "fdfo_naive", seeds=(1, 6)),
    *(Comparison("fdfo_dfusion", "fdfo_naive", templates=t) for t in TEMPLATES[1:]),
    Comparison("diffusion_dpo_prop_all", "diffusion_dpo_naive", seeds=(1, 6)),
    Comparison("diffusion_dpo_prop_all", "diffusion_dpo_naive", 2, (7, 12)),
    Comparison("fdfo_prop_all", "fdfo_naive", 2, (4, 18)),
)
IMAGES = tuple(  # how many images naive pairs need for what D-Fusion's pairs gain from 192
    Comparison("ddpo_dfusion", "ddpo_naive", seeds=(9, 11), against_rounds=n) for n in (4, 8, 12)
)
PARTS = (  # the method against what lacks a part of it
    Comparison("diffusion_dpo_dfusion", "diffusion_dpo_random"),
    Comparison("diffusion_dpo_dfusion", "diffusion_dpo_branch"),
    Comparison("diffusion_dpo_dfusion", "diffusion_dpo_renoise"),
    Comparison("diffusion_dpo_dfusion", "diffusion_dpo_all"),
    *(Comparison("ddpo_dfusion", name, seeds=(1, 6)) for name in ("ddpo_random", "ddpo_branch")),
    *(Comparison(name, "ddpo_naive", seeds=(1, 6)) for name in ("ddpo_random", "ddpo_branch")),
    Comparison("dpo_dfusion", "dpo_inversion"),
    Comparison("dpo_dfusion", "dpo_or"),
)
LOSSES = (  # losses on the same pairs
    Comparison("fdfo_naive", "diffusion_dpo_naive", seeds=(1, 6)),
    Comparison("fdfo_naive", "diffusion_dpo_naive", 2, (5, 9)),
    Comparison("diffusion_dpo_naive", "dpo_naive"),
)


@dataclass(frozen=True)
class Row:
    """What was found. gained: points, by both, means over seeds. images, computation: leads from as
    many images and from as much computation, one a seed; none of the latter where the numbers of
    images differ."""

    of: Comparison
    gained: np.ndarray
    images: list[float]
    computation: list[float]


def rows(comparisons: Sequence[Comparison], runs: Runs) -> list[Row]:
    """The comparisons that two or more seeds have."""
    found = []
    for one in comparisons:
        images = one.found(runs)
        computation = [] if one.against_rounds else one.found(runs, equal_computation=True)
        if len(images) > 1:
            found.append(Row(one, one.gained(runs).mean(0), images, computation))
    return found


def listed(templates: Sequence[int]) -> str:
    return ", ".join(map(str, templates))


def markdown(found: list[Row]) -> str:
    lines = ["| " + " | ".join(HEADING) + " |", "|" + "---|" * len(HEADING)]
    for row in found:
        what = [RECIPES[name].label for name in (row.of.recipe, row.of.against)]
        size = [listed(row.of.templates), row.of.images, str(len(row.images))]
        gained = [f"{points:+.0f}" for points in row.gained]
        # A recipe that is cheaper has no figure at the other's computation.
        known = row.computation and not np.isnan(row.computation).any()
        lead = [spread(row.images, None, 0), spread(row.computation, None, 0) if known else ""]
        lines.append("| " + " | ".join([*what, *size, *gained, *lead]) + " |")
    return "\n".join(lines)


def draw(found: list[Row], path: Path) -> None:
    """A row for each comparison with naive pairs: both leads with their intervals."""
    figure, axes = plt.subplots(figsize=(11, 0.36 * len(found) + 1.1), layout="constrained")
    labels = []
    for place, row in enumerate(found):
        for values, up, colour, mark in (
            (row.images, -0.14, "#0072B2", "s"),
            (row.computation, 0.14, "#E69F00", "o"),
        ):
            if not np.isnan(values).any():
                mean, half = over_seeds(values)
                axes.errorbar(mean, place + up, xerr=half, fmt=mark, color=colour, capsize=2)
        seeds = f"{len(row.images)} seeds from {row.of.seeds[0]}"
        size = f"template {listed(row.of.templates)}, {row.of.images} images, {seeds}"
        labels.append(f"{RECIPES[row.of.recipe].label}: {size}")
    axes.errorbar([], [], fmt="s", color="#0072B2", label="from as many images")
    axes.errorbar([], [], fmt="o", color="#E69F00", label="from as much computation")
    axes.legend(fontsize=8)
    axes.axvline(0, color="#000000", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlim(-45, 45)
    axes.set_xlabel("lead in right images over naive pairs with the same loss, points", fontsize=9)
    axes.set_yticks(range(len(found)), labels, fontsize=8)
    axes.set_ylim(len(found) - 0.5, -0.5)
    figure.savefig(path, dpi=130)
    plt.close(figure)


@ends_in_one_line()
def main() -> None:
    runs, out = load(RESULTS / "testbed" / "few"), RESULTS / "testbed" / "leads.png"
    titles = {"Pairs": PAIRS, "Images": IMAGES, "Parts": PARTS, "Losses": LOSSES}
    for title, comparisons in titles.items():
        print(f"{title}\n\n{markdown(rows(comparisons, runs))}\n")
    draw(rows(PAIRS, runs), out)
    print(f"Wrote {out}")


if __name__ == "__main__":
    main()
