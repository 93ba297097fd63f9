"""The method's parts, looked at one by one: what to check before blaming or praising the whole.

    python -m experiments.runs.parts [--preset testbed]

Of the DPO runs in results/<preset>/alignment/ and, on the testbed, of the masks that
`mask_quality` measured: how well masks cover the items, how many targets are adopted,
which steps the gradient comes from, and how far fusion moves each step of the adopted targets (of
those in a round's first update: later ones have no network before training to compare with). Writes
results/<preset>/parts.png and prints a table.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.measures.intervals import over_seeds
from experiments.pairs import mask_quality
from experiments.runs.alignment import RESULTS
from experiments.runs.alignment_plot import Run, Runs, load, pairs_of
from experiments.runs.recipes import RECIPES

# Okabe and Ito's colours, markers and lines.
MASKS = {
    "xor": ("#0072B2", "o", "-"),
    "or": ("#E69F00", "s", "--"),
    "otsu": ("#009E73", "^", "-."),
    "everywhere": ("#000000", "", ":"),
}
RUNS = {  # (template, method_pairs)
    (1, "dpo_dfusion"): ("#0072B2", "o", "-"),
    (2, "dpo_dfusion"): ("#009E73", "^", "--"),
    (3, "dpo_dfusion"): ("#CC79A7", "D", "-."),
    (1, "dpo_naive"): ("#E69F00", "s", ":"),
}
Kinds = dict[tuple[int, str], list[Run]]  # (template, method_pairs) -> one run a seed


def chosen(runs: Runs) -> Kinds:
    """The runs to look at, as far as they are there."""
    return {(t, kind): runs[t][kind] for t, kind in RUNS if kind in runs.get(t, {})}


def label(key: tuple[int, str]) -> str:
    return f"{RECIPES[key[1]].label}, template {key[0]}"


def by_step(runs: Sequence[Run], key: str) -> np.ndarray:
    """Mean over updates, then over seeds, of a list over steps t = T … 1; NaN where never known."""
    means = [
        _known_mean(np.array([update[key] for update in run["updates"]], dtype=float))
        for run in runs
    ]
    return _known_mean(np.array(means))


def _known_mean(rows: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN."""
    known = ~np.isnan(rows)
    total = np.where(known, rows, 0).sum(0)
    return np.where(known.any(0), total / known.sum(0).clip(min=1), np.nan)


def unseen(run: Run) -> float:
    """How far below log 2, Eq. 6 of a model that knows nothing, the loss on unseen pairs lies.

    Those of a round's first pass, after its first update: the network has not trained on them.
    """
    first: dict[int, list[float]] = {}
    for update in run["updates"]:
        if update["inner_epoch"] == 0:
            first.setdefault(update["round"], []).append(update["loss"])
    return math.log(2) - float(np.mean([loss for losses in first.values() for loss in losses[1:]]))


def unseen_lines(runs: Runs) -> list[str]:
    """What the loss on unseen pairs says of fused and of naive pairs, over runs with both."""
    pairs = [
        pair
        for _, kinds in sorted(runs.items())
        for pair in pairs_of(kinds, "dpo").values()
        if all(run["settings"]["train"]["updates_per_inner_epoch"] > 1 for run in pair)
    ]
    found = 1e5 * np.array([[unseen(run) for run in pair] for pair in pairs])
    if len(found) < 2:
        return []
    about = {
        "D-Fusion": found[:, 0],
        "naive": found[:, 1],
        "D-Fusion more": found[:, 0] - found[:, 1],
    }
    said = [f"{name} {{:.2f}} ± {{:.2f}}e-5".format(*over_seeds(v)) for name, v in about.items()]
    return [f"loss on pairs not yet seen, below log 2, {len(found)} runs: {', '.join(said)}"]


def draw_masks(axes: Axes, figures: dict[str, Any]) -> None:
    """Overlap of masks and items over the steps, means over templates."""
    for name, (colour, marker, line) in MASKS.items():
        rows = [[row["overlap"] for row in template[name]] for template in figures.values()]
        values = np.mean(rows, 0)
        rule = mask_quality.RULES.get(name)
        text = rule.label if rule else "a mask of all cells"
        axes.plot(
            np.arange(len(values), 0, -1),
            values,
            line,
            color=colour,
            marker=marker,
            markersize=4,
            label=text,
        )
    axes.set(ylabel="intersection over union", ylim=(0, 1))
    axes.set_title("masks and the items' true places", fontsize=10)
    _steps(axes, len(values))


def _steps(axes: Axes, steps: int) -> None:
    """An x axis of steps t = T … 1."""
    axes.set_xlabel("step t")
    axes.set_xticks([steps, *range(steps - steps % 5, 0, -5), 1])
    axes.set_xlim(steps + 0.5, 0.5)


def draw_adopted(axes: Axes, kinds: Kinds) -> None:
    """Share of targets adopted in each round, a line a seed."""
    for key, runs in kinds.items():
        if not any(row["adopted"] for run in runs for row in run["rounds"]):
            continue
        colour, marker, line = RUNS[key]
        for n, run in enumerate(runs):
            used = [row["round"] * row["images"] for row in run["rounds"]]
            shares = [row["adopted"] for row in run["rounds"]]
            axes.plot(
                used,
                shares,
                line,
                color=colour,
                marker=marker,
                markersize=4,
                alpha=1 if n == 0 else 0.5,
                label=label(key) if n == 0 else None,
            )
    axes.set(xlabel="images used before the round", ylabel="share of targets", ylim=(0, 1))
    axes.set_title("targets adopted (Eq. 7), a line a seed", fontsize=10)


def draw_steps(axes: Axes, kinds: Kinds, key: str, title: str, ylabel: str) -> None:
    """A list over steps of every kind of run that has it; steps of weight 0 are left out."""
    steps = 0
    for kind, runs in kinds.items():
        values = by_step(runs, key)
        values[values == 0] = np.nan
        steps, (colour, marker, line) = len(values), RUNS[kind]
        if np.isfinite(values).any():
            axes.plot(
                np.arange(steps, 0, -1),
                values,
                line,
                color=colour,
                marker=marker,
                markersize=4,
                label=label(kind),
            )
    if axes.lines:
        axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    _steps(axes, steps)


def draw(kinds: Kinds, masks: dict[str, Any] | None, path: Path) -> None:
    panels: list[Callable[[Axes], None]] = [
        lambda axes: draw_adopted(axes, kinds),
        lambda axes: draw_steps(
            axes, kinds, "gradient_share", "where the gradient comes from", "share of its norm"
        ),
        lambda axes: draw_steps(
            axes, kinds, "fusion_shift", "how far fusion moves a step", "|Δμ| / σ, adopted targets"
        ),
    ]
    if masks:
        panels.insert(0, lambda axes: draw_masks(axes, masks))
    columns = 2
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(5 * columns, 3.6 * rows), layout="constrained", squeeze=False
    )
    for axes, panel in zip(grid.flat, panels, strict=False):
        panel(axes)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    for axes in list(grid.flat)[len(panels) :]:
        axes.axis("off")
    figure.savefig(path, dpi=130)


def table(runs: Runs, masks: dict[str, Any] | None) -> str:
    kinds = chosen(runs)
    lines = mask_quality.lines(masks or {})
    for key, seeds in kinds.items():
        adopted = [row["adopted"] for run in seeds for row in run["rounds"]]
        shares, shift = by_step(seeds, "gradient_share"), by_step(seeds, "fusion_shift")
        text = f"{label(key)}: largest share of the gradient {np.nanmax(shares):.2f}"
        if any(adopted):
            text += f", adopted {min(adopted):.0%} to {max(adopted):.0%}, {np.mean(adopted):.0%}"
        if np.isfinite(shift).any():
            text += f", fusion moves a step by {np.nanmin(shift):.2f} to {np.nanmax(shift):.2f} σ"
        lines.append(text)
    return "\n".join([*lines, *unseen_lines(runs)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="testbed", choices=("testbed", "paper"))
    preset = parser.parse_args().preset
    folder = RESULTS / preset / "alignment"
    runs = load(folder)
    kinds = chosen(runs)
    if not kinds:
        raise SystemExit(f"no DPO runs in {folder}; run experiments.runs.alignment first")
    masks = None
    if preset == "testbed":
        if not mask_quality.OUT.exists():
            raise SystemExit(
                f"{mask_quality.OUT}: not there; run experiments.pairs.mask_quality first"
            )
        masks = json.loads(mask_quality.OUT.read_text())["templates"]
    print(table(runs, masks))
    out = RESULTS / preset / "parts.png"
    draw(kinds, masks, out)
    print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
