"""Alignment curves (the paper's Fig. 5 and 7) of the runs in results/alignment_*.json.

python -m experiments.alignment_plot    writes experiments/results/alignment.png
"""

import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from experiments.alignment import RESULTS

# Okabe and Ito's colours, which the colour-blind can tell apart.
STYLES = {
    "dpo_dfusion": ("DPO + D-Fusion", "#0072B2", "o"),
    "dpo_naive": ("naive DPO", "#E69F00", "s"),
    "ddpo_dfusion": ("DDPO + D-Fusion", "#009E73", "^"),
    "dpok_dfusion": ("DPOK + D-Fusion", "#CC79A7", "D"),
}
MEASURES = {"scorer": "mean score (the reward)", "judge": "right, by the judge"}


def curve(axes: Axes, figures: dict, measure: str, label: str, colour: str, marker: str) -> None:
    """Same noise before and after as a line; each round's own samples as pale points."""
    same = figures["same_noise"]
    axes.plot([row["rounds"] for row in same], [row[measure] for row in same], color=colour,
              marker=marker, label=label)  # fmt: skip
    rounds = figures["rounds"]
    axes.plot([row["round"] for row in rounds], [row[measure] for row in rounds], color=colour,
              marker=marker, linestyle="none", alpha=0.35)  # fmt: skip


def main() -> None:
    found = {name: RESULTS / f"alignment_{name}.json" for name in STYLES}
    runs = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        for name, figures in runs.items():
            curve(axes, figures, measure, *STYLES[name])
        axes.set_xlabel("rounds of training")
        axes.set_title(title, fontsize=11)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=9)
    figure.suptitle(
        "Lines: the same noise before and after; pale points: each round's own samples", fontsize=10
    )
    out = RESULTS / "alignment.png"
    figure.savefig(out, dpi=130)
    print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
