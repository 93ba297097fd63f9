"""All recipes side by side, as a Markdown table: what each gained after as many rounds.

    python -m experiments.runs.table [--runs few --rounds 4 --seeds 1 3 --beside dpo_naive]

Gains are means over seeds of images made with the same noise before and after, with 95 % intervals:
over seeds (Student's t), or of one seed over its images, which is marked. The last two columns are
leads over the recipe that --beside names, on the seeds that both have: from as many images, and
from as much computation as that recipe takes for these rounds, counted in UNet evaluations
(`dfusion estimate`) and interpolated between comparisons. Prompts that training did not have are
in the table for runs that `experiments.runs.generalisation` has measured.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dfusion.errors import UserError, ends_in_one_line
from dfusion.settings.plain_values import settings_of
from dfusion.training.estimate import evaluations
from experiments.measures.intervals import Values, over_seeds
from experiments.runs.alignment import RESULTS, SIZES
from experiments.runs.alignment_plot import EACH, Run, at, gains, half_width, load
from experiments.runs.recipes import RECIPES

TITLES = {"judge": "right, by the judge", "scorer": "score", "second": "second scorer"}
HEADING = [
    "recipe",
    "seeds",
    *TITLES.values(),
    "right, unseen prompts",
    "diversity",
    "predicted noise",
    "evaluations",
    "lead, right",
    "lead, equal computation",
]
Unseen = Mapping[tuple[str, int, int], float]  # recipe, seed and rounds: points gained


def computation(run: Run) -> float:
    """UNet evaluations of a round, comparisons left out."""
    settings = settings_of(run["settings"], "a run's settings")
    adopted = float(np.mean([row["adopted"] for row in run["rounds"]]))
    prompts = run["rounds"][0]["images"] // settings.images_per_prompt
    found = evaluations(settings, prompts, adopted)
    return sum(v for k, v in found.items() if k != "comparing") / settings.train.num_epochs


def gain_at(run: Run, key: str, rounds: float) -> float:
    """A measure's gain after so many rounds, interpolated between comparisons; NaN beyond them."""
    known = sorted(at(run))
    values = [float(np.mean(at(run)[k][key]) - np.mean(at(run)[0][key])) for k in known]
    return float(np.interp(rounds, known, values, right=np.nan))


def spread(values: Values, wide: float | None, digits: int = 3) -> str:
    """A mean with half its interval; wide: that of a single seed."""
    half = over_seeds(values)[1] if len(values) > 1 else wide
    mark = "" if len(values) > 1 else "*"
    said = f"{np.mean(values):+.{digits}f}"
    return said if half is None else f"{said} ± {half:.{digits}f}{mark}"


def points_gained(
    run: Run, other: Run, rounds: int, other_rounds: int, equal_computation: bool = False
) -> tuple[float, float]:
    """By both runs, each after its rounds; equal_computation: by the first from as many evaluations
    as the second took for `rounds`."""
    share = computation(other) / computation(run) if equal_computation else 1
    right = EACH["judge"]
    return 100 * gain_at(run, right, rounds * share), 100 * gain_at(other, right, other_rounds)


def leads(
    seeds: list[Run], others: list[Run], rounds: int, equal_computation: bool = False
) -> list[float]:
    """How many points more were gained than by the other recipe's run of the same seed.

    After as many rounds; or from as many evaluations as the other run took for them.
    """
    found = []
    theirs = {run["settings"]["seed"]: run for run in others}
    for run in seeds:
        if other := theirs.get(run["settings"]["seed"]):
            ours, its = points_gained(run, other, rounds, rounds, equal_computation)
            found.append(ours - its)
    return found


def unseen_gains(results: Path, template: int) -> Unseen:
    """What every measured run gained on prompts that it was not trained on."""
    found = {}
    for path in results.glob(f"generalisation_t{template}_s*.json"):
        saved = json.loads(path.read_text())
        models, seed = saved["models"], saved["seed"]
        for recipe in RECIPES:
            if figures := models.get(f"{recipe}_t{template}_s{seed}"):
                gain = np.mean(figures["right"]) - np.mean(models["base"]["right"])
                found[recipe, seed, figures["rounds"]] = 100 * float(gain)
    return found


def row(
    name: str, seeds: list[Run], rounds: int, beside: list[Run], unseen: Unseen | None = None
) -> list[str]:
    """The table's row of one recipe."""
    cells = [RECIPES[name].label, str(len(seeds))]
    for measure in TITLES:
        key = EACH[measure]
        scale, digits = (100, 0) if measure == "judge" else (1, 3)
        wide = scale * half_width(seeds, key, rounds)
        cells.append(spread(scale * gains(seeds, key, rounds), wide, digits))
    keys = [(name, run["settings"]["seed"], rounds) for run in seeds]
    known = [unseen[key] for key in keys if unseen and key in unseen]
    cells.append(spread(known, None, 0) if known else "")
    cells.append(spread([at(r)[rounds]["diversity"] - at(r)[0]["diversity"] for r in seeds], None))
    noise = [r["rounds"][rounds - 1].get("noise_norm") for r in seeds]
    cells.append(f"{np.mean(noise):.2f}" if all(noise) else "")
    cells.append(f"{rounds * np.mean([computation(run) for run in seeds]) / 1000:.0f} k")
    for equal_computation in (False, True):
        lead = leads(seeds, beside, rounds, equal_computation)
        none = not lead or seeds is beside or np.isnan(lead).any()
        cells.append("" if none else spread(lead, None, 0))
    return cells


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADING, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(HEADING), *lines[1:]])


def arguments(description: str, given: list[str] | None = None) -> argparse.Namespace:
    """The flags of this command and of table_plot."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--preset", default="testbed", choices=SIZES)
    parser.add_argument("--runs", default="alignment", help="folder in results/<preset>")
    parser.add_argument("--template", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--seeds", nargs=2, type=int, metavar=("FIRST", "LAST"), help="default: all there are"
    )
    parser.add_argument("--beside", default="dpo_naive", choices=RECIPES)
    return parser.parse_args(given)


def chosen(args: argparse.Namespace) -> dict[str, list[Run]]:
    """By recipe, the runs that were compared after so many rounds. Raises UserError if there is
    none to compare with."""
    runs = load(RESULTS / args.preset / args.runs, args.seeds).get(args.template, {})
    there = {
        name: [r for r in runs[name] if args.rounds in at(r)] for name in RECIPES if name in runs
    }
    there = {name: seeds for name, seeds in there.items() if seeds}
    if args.beside not in there:
        raise UserError(
            f"--beside {args.beside}: has no run of template {args.template} that was compared "
            f"after {args.rounds} rounds; run experiments.runs.alignment"
        )
    return there


@ends_in_one_line()
def main() -> None:
    args = arguments(__doc__)
    runs = chosen(args)
    unseen = unseen_gains(RESULTS / args.preset / args.runs, args.template)
    beside = runs[args.beside]
    rows = [row(name, seeds, args.rounds, beside, unseen) for name, seeds in runs.items()]
    print(markdown(rows))


if __name__ == "__main__":
    main()
