"""Alignment curves (the paper's Fig. 5, 7 and 11) of the runs in results/<preset>/alignment/.

    python -m experiments.runs.alignment_plot [--preset testbed] [--runs alignment]

Writes results/<preset>/alignment.png and prints a table. --runs takes runs that were put aside,
made with other settings, say, from a folder of that name, and writes a figure of that name.

Lines are means over seeds of images made with the same noise at every point, as far as all seeds
go, with the 95 % interval of what was gained since the first point: over three or more seeds, or of
one seed over its images. Thin lines are single seeds.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from experiments.measures.intervals import gain, over_seeds, said
from experiments.runs.alignment import RESULTS, SIZES
from experiments.runs.recipes import RECIPES

STYLES = {name: (r.label, *r.style) for name, r in RECIPES.items() if r.style}
MEASURES = {
    "scorer": "mean score (the reward)",
    "judge": "right, by the judge",
    "second": "mean score of a second scorer",
}
EACH = {"scorer": "scores", "judge": "right", "second": "second_scores"}  # of every image
Run = dict[str, Any]  # what a run's JSON holds
Pair = tuple[Run, Run]  # with fused pairs, with naive pairs; equal seeds
Runs = dict[int, dict[str, list[Run]]]  # template -> recipe -> one run a seed


def load(folder: Path, seeds: Sequence[int] | None = None) -> Runs:
    """Every run whose name says recipe, template and seed. seeds: the first and the last wanted."""
    first, last = seeds or (-math.inf, math.inf)
    runs: Runs = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*_t[123]_s*.json")):
        kind, template, seed = path.stem.rsplit("_", 2)
        if kind in RECIPES and first <= int(seed[1:]) <= last:
            runs[int(template[1:])][kind].append(json.loads(path.read_text()))
    return runs


def at(run: Run) -> dict[int, Run]:
    """The comparisons of a run, by the rounds of training before them."""
    return {row["rounds"]: row for row in run["same_noise"]}


def compared(seeds: list[Run]) -> list[int]:
    """After how many rounds some seed has a comparison."""
    return sorted({rounds for run in seeds for rounds in at(run)})


def curves(seeds: list[Run], measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Images used up to each comparison, and the measure there, NaN where a seed has none: (C,),
    (seeds, C)."""
    each, rounds = seeds[0]["rounds"][0]["images"], compared(seeds)
    values = [[at(run).get(k, {}).get(measure, np.nan) for k in rounds] for run in seeds]
    return np.array(rounds) * each, np.array(values, float)


def paired(seeds: list[Run], key: str, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """A measure of all seeds' images after so many rounds, and of the same noise before."""
    before, after = (np.concatenate([at(run)[k][key] for run in seeds]) for k in (0, rounds))
    return after, before


def half_width(seeds: list[Run], key: str, rounds: int) -> float:
    """Of the gain's 95 % interval: over seeds where there are several, else over images."""
    if len(seeds) > 1:
        return over_seeds(gains(seeds, key, rounds))[1]
    return gain(*paired(seeds, key, rounds))[1]


def draw(axes: Axes, runs: dict[str, list[Run]], measure: str) -> None:
    for place, kind in enumerate(kind for kind in STYLES if kind in runs):
        label, colour, marker, style = STYLES[kind]
        used, values = curves(runs[kind], measure)
        used = used * (1 + 0.012 * place)  # else the bars hide each other
        # A mean over other seeds at every point would jump: it has the points of all seeds.
        known = np.isfinite(values)
        shared = known.all(0)
        mean = values[:, shared].mean(0)
        every, key = runs[kind], EACH[measure]
        points = np.array(compared(every))[shared]
        # Of two seeds, Student's t is wider than the figure.
        wide = [half_width(every, key, k) for k in points] if len(every) != 2 else None
        axes.errorbar(
            used[shared],
            mean,
            wide,
            color=colour,
            marker=marker,
            linestyle=style,
            capsize=4,
            label=label,
        )
        for seed, own in zip(values, known, strict=True) if len(values) > 1 else ():
            axes.plot(used[own], seed[own], style, color=colour, alpha=0.35, linewidth=1)
    axes.set_xlabel("images used")
    axes.grid(alpha=0.3)


def summary(kind: str, every: list[Run]) -> list[str]:
    """Every comparison against the first, images of all seeds that have it paired by noise."""
    lines = []
    for rounds in compared(every)[1:]:
        seeds = [run for run in every if rounds in at(run)]
        texts, keys = [], keys_of(seeds)
        for key in keys:
            change = _spread(gains(seeds, key, rounds), ", over seeds")
            texts.append(f"{key} {said(*paired(seeds, key, rounds))}{change}")
        if "right" in keys:
            wrong = [np.mean([liked_but_wrong(run, k) for run in seeds]) for k in (0, rounds)]
            texts.append(f"liked but wrong {wrong[0]:.3f} -> {wrong[1]:.3f}")
        name = f"{RECIPES[kind].label}, rounds {rounds}, seeds {len(seeds)}"
        lines.append(f"{name:46} {'   '.join(texts)}")
    return lines


def keys_of(runs: list[Run]) -> list[str]:
    """What all of them measured of every image: the judge's answer, say, on the testbed only."""
    rows = [row for run in runs for row in run["same_noise"]]
    return [key for key in EACH.values() if all(row.get(key) for row in rows)]


def gains(seeds: list[Run], key: str, rounds: int) -> np.ndarray:
    """What each seed's mean gained up to the comparison after so many rounds."""
    return np.array([np.mean(at(run)[rounds][key]) - np.mean(at(run)[0][key]) for run in seeds])


def liked_but_wrong(run: Run, rounds: int) -> float:
    """Of the images that score above the median of those before training, the share that the judge
    rejects: it grows where training pleases the scorer without meeting the prompt."""
    median = np.median(at(run)[0]["scores"])
    liked = np.array(at(run)[rounds]["scores"]) > median
    right = np.array(at(run)[rounds]["right"], bool)
    return float((~right[liked]).mean()) if liked.any() else float("nan")


def _spread(values: np.ndarray, words: str = "") -> str:
    """Half of the interval of their mean, where there are several."""
    return f"{words} ± {over_seeds(values)[1]:.3f}" if len(values) > 1 else ""


def pairs_of(kinds: dict[str, list[Run]], method: str) -> dict[int, Pair]:
    """By seed, a method's runs with fused and with naive pairs."""
    fused, naive = (
        {run["settings"]["seed"]: run for run in kinds.get(f"{method}_{pairs}", ())}
        for pairs in ("dfusion", "naive")
    )
    return {seed: (fused[seed], naive[seed]) for seed in sorted(fused.keys() & naive.keys())}


def against_naive(pairs: dict[int, Pair]) -> list[str]:
    """What D-Fusion gains over naive pairs, paired by seed; of one seed, by image."""
    texts = []
    for rounds in compared([run for pair in pairs.values() for run in pair])[1:]:
        shared = {s: pair for s, pair in pairs.items() if all(rounds in at(run) for run in pair)}
        for key in keys_of([run for pair in shared.values() for run in pair]) if shared else ():
            every = list(shared.values())
            more = leads(every, key, rounds)
            wide = over_images(*every[0], key, rounds) if len(every) == 1 else ""
            texts.append(_lead(rounds, key, list(shared), more) + wide)
    return texts


def over_images(first: Run, second: Run, key: str, rounds: int) -> str:
    """Half of the interval of how much more the first run gained, images paired by noise."""
    more, less = (
        np.subtract(at(run)[rounds][key], at(run)[0][key], dtype=float) for run in (first, second)
    )
    return f" ± {gain(more, less)[1]:.3f} over images"


def leads(pairs: list[Pair], key: str, rounds: int) -> np.ndarray:
    """Gain of each pair's first run less that of its second."""
    first, second = ([pair[n] for pair in pairs] for n in (0, 1))
    return gains(first, key, rounds) - gains(second, key, rounds)


def _lead(rounds: int, key: str, names: list[int], more: np.ndarray) -> str:
    """The mean of leads with its interval, then each by its name."""
    each = ", ".join(f"{name}: {m:+.3f}" for name, m in zip(names, more, strict=True))
    return f"after {rounds} rounds, {key}: {more.mean():+.3f}{_spread(more)} ({each})"


def over_templates(every: dict[int, dict[int, Pair]]) -> list[str]:
    """What D-Fusion gains over naive pairs: means of each template's seeds, then over templates,
    as seeds of one template share their prompts. After as many rounds as all runs have."""
    runs = [run for pairs in every.values() for pair in pairs.values() for run in pair]
    texts = []
    for rounds in compared(runs)[1:]:
        if any(rounds not in at(run) for run in runs):
            continue
        for key in keys_of(runs):
            more = np.array(
                [leads(list(pairs.values()), key, rounds).mean() for pairs in every.values()]
            )
            texts.append(_lead(rounds, key, list(every), more))
    return texts


def print_differences(runs: Runs) -> None:
    """D-Fusion against naive pairs: in each template by seed, then over templates."""
    for method in ("dpo", "diffusion_dpo", "ddpo", "dpok"):
        every = {t: pairs_of(kinds, method) for t, kinds in sorted(runs.items())}
        every = {template: pairs for template, pairs in every.items() if pairs}
        for template, pairs in every.items():
            for text in against_naive(pairs):
                print(f"  {method}: D-Fusion more, template {template}, by seed, {text}")
        for text in over_templates(every) if len(every) > 1 else ():
            print(f"  {method}: D-Fusion more, by template, {text}")


def _everywhere(runs: Runs, measure: str) -> bool:
    """Whether every run has it."""
    every = [run for kinds in runs.values() for seeds in kinds.values() for run in seeds]
    return all(row.get(measure) is not None for run in every for row in run["same_noise"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="testbed", choices=SIZES)
    parser.add_argument("--runs", default="alignment", help="folder in results/<preset>")
    args = parser.parse_args()
    folder = RESULTS / args.preset / args.runs
    runs = load(folder)
    if not runs:
        raise SystemExit(f"no runs in {folder}; run experiments.runs.alignment first")
    shown = {key: title for key, title in MEASURES.items() if _everywhere(runs, key)}
    shape, size = (len(runs), len(shown)), (4.6 * len(shown), 3.7 * len(runs))
    figure, grid = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    for row, (template, kinds) in enumerate(sorted(runs.items())):
        for column, (measure, title) in enumerate(shown.items()):
            draw(grid[row][column], kinds, measure)
            grid[row][column].set_title(f"template {template}: {title}", fontsize=10)
        print(f"template {template}")
        for kind in (k for k in RECIPES if k in kinds):
            print("\n".join(f"  {line}" for line in summary(kind, kinds[kind])))
    print_differences(runs)
    shown_as: dict[str, Artist] = {}
    for axes in grid[:, 0]:
        handles, labels = axes.get_legend_handles_labels()
        shown_as.update(zip(labels, handles, strict=True))
    figure.legend(
        shown_as.values(),
        shown_as,
        loc="outside upper center",
        ncols=4,
        fontsize=9,
        title="bars: 95 % intervals of gains, over three or more seeds, or of one seed over images",
        title_fontsize=9,
    )
    out = folder.with_name(f"{folder.name}.png")
    figure.savefig(out, dpi=130)
    print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
