"""Cross-attention maps of the items over the denoising steps (the paper's Fig. 10).

    python -m experiments.pairs.cross_maps --prompt "a star wearing a hat" --items star,hat

Of the image with the lowest and the one with the highest score, or of --base and --reference;
below each map the mask that its threshold gives. The numbers are shares of cells in the mask.
"""

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from dfusion.method.masks import binarise
from experiments.pairs.chosen_pair import choose, parser, save, show

SHOWN = 7  # steps across


def draw(row: np.ndarray, maps: Tensor, label: str, image: np.ndarray, titles: list[str]) -> None:
    """The image and maps (S, gh, gw) on one scale of brightness."""
    show(row[0], image, "")
    row[0].set_ylabel(label, fontsize=8)
    top = float(maps.max()) or 1.0
    for cell, one, title in zip(row[1:], maps, titles, strict=True):
        cell.imshow(one.numpy(), cmap="magma", vmin=0, vmax=top)
        cell.set_title(title, fontsize=8)
        cell.set_xticks([])
        cell.set_yticks([])


def main() -> None:
    args = parser(__doc__).parse_args()
    pair = choose(args)
    total = len(pair.policy.sampler)
    indices = np.unique(np.linspace(0, total - 1, min(SHOWN, total)).round().astype(int)).tolist()
    titles = [f"t = {total - i}" for i in indices]
    items = pair.source.prompt.items
    height = 4 * len(items)
    size = (1.25 * (len(indices) + 1), 1.3 * height + 0.4)
    figure, axes = plt.subplots(height, len(indices) + 1, figsize=size, layout="constrained")
    rows = iter(axes)
    covered = {}
    trajectories = (pair.source.base, pair.source.reference)
    for side, trajectory, image in zip(
        ("base", "reference"), trajectories, pair.images, strict=True
    ):
        masks = binarise(trajectory.maps, pair.source.prompt.thresholds)
        for k, item in enumerate(items):
            label = f"{side}: {item.name}"
            draw(next(rows), trajectory.maps[indices, k], label, image, titles)
            draw(next(rows), masks[indices, k].float(), "its mask", image, titles)
            shares = masks[indices, k].float().mean((-2, -1))
            covered[label] = {
                title: round(float(share), 4) for title, share in zip(titles, shares, strict=True)
            }
    figure.suptitle(
        f'"{pair.source.prompt.text}", images {pair.indices[0]} and {pair.indices[1]}: '
        "maps of the item words, and masks",
        fontsize=10,
    )
    save(figure, args, "cross_maps", pair, covered)


if __name__ == "__main__":
    main()
