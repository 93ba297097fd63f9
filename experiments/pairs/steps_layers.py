"""What fusing at other steps and layers does (the paper's Fig. 9), for any prompt and seeds.

    python -m experiments.pairs.steps_layers --prompt "a star wearing a hat" --items star,hat

`fusion_grid` has the figures of many pairs.
"""

from dataclasses import replace

import matplotlib.pyplot as plt

from dfusion.settings.steps import parse_steps
from diffusers_patched import LayerTable
from experiments.pairs.chosen_pair import choose, parser, save, show

SINGLE = 8  # blocks of a transformer that have a row each


def rows(table: LayerTable) -> dict[str, frozenset[int]]:
    """The paper's choices of layers, for any UNet; of a transformer each block, thirds and all."""
    if "middle" in table.names:
        blocks = {f"block {n}": frozenset({n}) for n in range(len(table.blocks))}
        thirds = {f"{name} third": table.parse(name) for name in ("early", "middle", "late")}
        single = {} if len(blocks) > SINGLE else blocks
        return {**single, **thirds, "all": table.parse("all")}
    (middle,) = table.parse("mid")
    after = sorted(table.parse("mid,up"))
    return {
        "middle": frozenset({middle}),
        "middle and\nits neighbours": frozenset({middle - 1, middle, middle + 1}),
        "middle and up,\nnot the last": frozenset(after[:-1]),
        "middle and up": frozenset(after),
        "all": table.parse("all"),
    }


def columns(steps: int) -> list[str]:
    """From all steps to the last few, and the first half alone."""
    firsts = (steps, steps * 9 // 10, steps * 3 // 4, steps // 2, steps // 4)
    return [*(f"{first}-1" for first in firsts), f"{steps}-{steps // 2 + 1}"]


def main() -> None:
    args = parser(__doc__).parse_args()
    pair = choose(args)
    steps = len(pair.policy.sampler)
    wanted = columns(steps)
    layers = rows(pair.policy.model.layers)
    measured = {}
    size = (1.5 * (len(wanted) + 1), 1.65 * len(layers) + 0.4)
    figure, axes = plt.subplots(len(layers), len(wanted) + 1, figsize=size, layout="constrained")
    for n, (row, (label, chosen)) in enumerate(zip(axes, layers.items(), strict=True)):
        row[0].axis("off")
        if n < 2:
            row[0].axis("on")
            show(row[0], pair.images[n], ("base", "reference")[n])
        plans = [
            replace(pair.plan, layers=chosen, steps=parse_steps(text, steps)) for text in wanted
        ]
        for cell, text, picture in zip(row[1:], wanted, pair.targets(plans), strict=True):
            found = pair.measure(picture)
            show(cell, picture, f"t {text}   {found['score']:.3f}")
            measured[f"{label}, t {text}".replace("\n", " ")] = found
        row[1].set_ylabel(f"{label}\n({', '.join(map(str, sorted(chosen)))})", fontsize=8)
    figure.suptitle(
        f'"{pair.source.prompt.text}", images {pair.indices[0]} and {pair.indices[1]}; '
        "fused layers down, fused steps across; numbers are scores",
        fontsize=10,
    )
    save(figure, args, "steps_layers", pair, measured)


if __name__ == "__main__":
    main()
