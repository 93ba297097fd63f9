"""The fusion grid as a picture: layers down, steps across, one column of panels per template.

    python -m experiments.pairs.fusion_plot [--preset testbed]

Reads and writes results/<preset>/fusion_grid.*.
"""

import argparse
import json
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.pairs.fusion_grid import LAYERS, RESULTS, STEPS, TEMPLATES, Cell, preset_cell

TEMPLATE_NAMES = {1: "behaviour", 2: "attribute", 3: "position"}
PANELS = {
    "target_right": "targets that are right (judge)",
    "adopted": "targets adopted (Eq. 7)",
    "ssim_target": "SSIM of target to base, outside the items",
}


def panel(axes: Axes, values: np.ndarray, title: str, layers: Sequence[str]) -> None:
    """One annotated heat map, (layers, steps)."""
    axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    axes.set_title(title, fontsize=9)
    axes.set_xticks(range(len(STEPS)), [f"t {s}" for s in STEPS], fontsize=8)
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        colour = "black" if value > 0.6 else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="testbed", choices=sorted(LAYERS))
    args = parser.parse_args()
    source, layers = RESULTS.parent / args.preset / "fusion_grid.json", LAYERS[args.preset]
    threshold = preset_cell(args.preset).threshold

    def named(layer: str, steps: str) -> str:
        return Cell(layer, steps, threshold=threshold).name

    cells = json.loads(source.read_text())["cells"]
    size = (11, 8)
    figure, rows = plt.subplots(len(PANELS), len(TEMPLATES), figsize=size, layout="constrained")
    for axes_row, (key, label) in zip(rows, PANELS.items(), strict=True):
        for axes, template in zip(axes_row, TEMPLATES, strict=True):
            values = np.array(
                [
                    [cells[named(layer, steps)][str(template)][key] for steps in STEPS]
                    for layer in layers
                ]
            )
            panel(axes, values, f"{TEMPLATE_NAMES[template]}: {label}", layers)
    some = cells[named(layers[0], STEPS[0])]["1"]
    figure.suptitle(
        f"Fused layers and steps, {some['pairs']} pairs per template, XOR masks",
        fontsize=11,
    )
    out = source.with_suffix(".png")
    figure.savefig(out, dpi=130)
    print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
