"""The fusion grid as a picture: layers down, steps across, one column of panels per template.

python -m experiments.pairs.fusion_plot    reads and writes results/testbed/fusion_grid.*
"""

import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.pairs.fusion_grid import LAYERS, RESULTS, STEPS, TEMPLATES, Cell

TEMPLATE_NAMES = {1: "behaviour", 2: "attribute", 3: "position"}
PANELS = {
    "target_right": "targets that are right (judge)",
    "adopted": "targets adopted (Eq. 7)",
    "ssim_target": "SSIM of target to base, outside the items",
}


def panel(axes: Axes, values: np.ndarray, title: str) -> None:
    """One annotated heat map, (layers, steps)."""
    axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    axes.set_title(title, fontsize=9)
    axes.set_xticks(range(len(STEPS)), [f"t {s}" for s in STEPS], fontsize=8)
    axes.set_yticks(range(len(LAYERS)), LAYERS, fontsize=8)
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        colour = "black" if value > 0.6 else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)


def main() -> None:
    source = RESULTS / "fusion_grid.json"
    cells = json.loads(source.read_text())["cells"]
    size = (11, 8)
    figure, rows = plt.subplots(len(PANELS), len(TEMPLATES), figsize=size, layout="constrained")
    for axes_row, (key, label) in zip(rows, PANELS.items(), strict=True):
        for axes, template in zip(axes_row, TEMPLATES, strict=True):
            values = np.array(
                [
                    [cells[Cell(layer, steps).name][str(template)][key] for steps in STEPS]
                    for layer in LAYERS
                ]
            )
            panel(axes, values, f"{TEMPLATE_NAMES[template]}: {label}")
    some = cells[Cell(LAYERS[0], STEPS[0]).name]["1"]
    figure.suptitle(
        f"Fused layers and steps, {some['pairs']} pairs per template, XOR masks",
        fontsize=11,
    )
    out = source.with_suffix(".png")
    figure.savefig(out, dpi=130)
    print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
