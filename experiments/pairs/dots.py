"""Gains with their intervals as dots, one line a row: for tables too long to be read as numbers."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.measures.intervals import Gain

TITLES = {
    "score": "gain in score (the reward)",
    "right": "gain in right images (the judge)",
    "second": "gain in score of a second scorer",
}


def draw(rows: Mapping[str, Mapping[str, Gain]], path: Path, compare: str = "") -> None:
    """A panel for each of TITLES that every row has. compare: the row that a dashed line marks."""
    shown = [key for key in TITLES if all(row.get(key) for row in rows.values())]
    size = (4.6 * len(shown), 0.32 * len(rows) + 1.2)
    figure, grid = plt.subplots(
        1, len(shown), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, key in zip(grid[0], shown, strict=True):
        for place, row in enumerate(rows.values()):
            mean, half = row[key] or (0.0, 0.0)
            axes.errorbar(mean, place, xerr=half, fmt="o", color="#0072B2", capsize=3)
        axes.axvline(0, color="#000000", linewidth=0.8)
        if marked := rows.get(compare, {}).get(key):
            axes.axvline(marked[0], color="#E69F00", linestyle="--", linewidth=1)
        axes.set_title(TITLES[key], fontsize=10)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x", alpha=0.3)
    grid[0][0].set_yticks(range(len(rows)), list(rows))
    grid[0][0].set_ylim(len(rows) - 0.5, -0.5)
    figure.savefig(path, dpi=130)
